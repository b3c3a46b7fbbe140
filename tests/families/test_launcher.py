"""The driver API without a driver, and on a GPU: loading, launching, capturing, failing."""

import threading

import pytest
import torch

from autotune import _C
from autotune.jit import compiler
from autotune.jit.unit import Unit
from autotune.values.device import cuda_devices
from autotune.values.errors import LaunchError

SOURCE = """
extern "C" __global__ void scale(float* out, const float* x, long long n, long long factor) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] * factor;
}

// One block turns x around through dynamic shared memory.
extern "C" __global__ void turn(float* out, const float* x, long long n) {
  extern __shared__ float s[];
  for (long long i = threadIdx.x; i < n; i += blockDim.x) s[i] = x[i];
  __syncthreads();
  for (long long i = threadIdx.x; i < n; i += blockDim.x) out[i] = s[n - 1 - i];
}

// Reads what the kernel before it wrote, however early it was started.
extern "C" __global__ void increment(float* out) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  out[blockIdx.x * blockDim.x + threadIdx.x] += 1;
}

extern "C" __global__ void __launch_bounds__(256) fixed(float* out) {
  __shared__ float s[256];
  s[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[255 - threadIdx.x];
}

"""
N = 1000
GRID = (4, 1, 1)

without_driver = pytest.mark.skipif(bool(cuda_devices()), reason="this machine has a GPU")


@without_driver
def test_without_a_driver_there_is_a_reason_and_nothing_raises():
    assert _C.cuda_devices() == []
    assert _C.cuda_unavailable_reason()
    assert _C.cuda_capture_id(0) is None


@without_driver
@pytest.mark.parametrize("call", [lambda: _C.CudaFunction(b"", "scale", 0), lambda: _C.cuda_capture_id(64)])
def test_without_a_driver_calls_fail_with_the_reason(call):
    with pytest.raises(LaunchError) as raised:
        call()
    assert _C.cuda_unavailable_reason() in str(raised.value)


@pytest.fixture(scope="module")
def cubin(tmp_path_factory):
    path = tmp_path_factory.mktemp("launcher") / "launcher.cu"
    path.write_text(SOURCE)
    return compiler.build(Unit(str(path), (), cuda_devices()[0].arch))


@pytest.fixture
def load(cubin):
    return lambda name: _C.CudaFunction(cubin, name, 0)


@pytest.fixture
def x():
    return torch.randn(N, device="cuda:0")


def stream():
    return torch.cuda.current_stream(0).cuda_stream


def run_scale(function, out, x, factor, on=None):
    arguments = (out.data_ptr(), x.data_ptr(), x.numel(), factor)
    function.launch(GRID, 256, 0, stream() if on is None else on, arguments)


@pytest.mark.gpu
def test_devices_are_those_of_torch():
    found = _C.cuda_devices()
    assert len(found) == torch.cuda.device_count()
    for index, device in enumerate(found):
        known = torch.cuda.get_device_properties(index)
        assert device["name"] == known.name
        assert (device["major"], device["minor"]) == (known.major, known.minor)
        assert device["multiprocessors"] == known.multi_processor_count
        assert device["memory_bytes"] == known.total_memory
        assert device["l2_bytes"] == known.L2_cache_size
        assert device["shared_bytes"] >= 99 << 10
    assert _C.cuda_unavailable_reason() == ""
    assert tuple(map(int, _C.cuda_driver_version().split("."))) >= (12, 0)


@pytest.mark.gpu
def test_attributes_are_those_of_the_source(load):
    fixed = load("fixed")
    assert (fixed.static_shared_bytes, fixed.local_bytes, fixed.max_threads) == (1024, 0, 256)
    assert 0 < fixed.registers <= 255


@pytest.mark.gpu
@pytest.mark.parametrize("factor", [3, -5])
def test_launch_on_the_current_stream(load, x, factor):
    function = load("scale")
    out = torch.full((N + 24,), 7.0, device=x.device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run_scale(function, out, x, factor)
    side.synchronize()
    assert torch.equal(out[:N], x * factor)
    assert torch.equal(out[N:], torch.full((24,), 7.0, device=x.device))


@pytest.mark.gpu
def test_arguments_may_be_a_list(load, x):
    out = torch.empty_like(x)
    load("scale").launch(GRID, 256, 0, stream(), [out.data_ptr(), x.data_ptr(), N, 2])
    assert torch.equal(out, x * 2)


@pytest.mark.gpu
def test_more_shared_memory_than_the_default(load):
    function = load("turn")
    for n in (1000, 20000, 24000, 1000):
        x = torch.randn(n, device="cuda:0")
        out = torch.empty_like(x)
        function.launch((1, 1, 1), 256, 4 * n, stream(), (out.data_ptr(), x.data_ptr(), n))
        assert torch.equal(out, x.flip(0))


@pytest.mark.gpu
def test_programmatic_launches_keep_their_order(load):
    if _C.cuda_devices()[0]["major"] < 9:
        pytest.skip("programmatic launches need sm_90")
    function = load("increment")
    out = torch.zeros(64 * 256, device="cuda:0")
    arguments = (out.data_ptr(),)
    for _ in range(100):
        function.launch((64, 1, 1), 256, 0, stream(), arguments, programmatic=True)
    assert torch.equal(out, torch.full_like(out, 100))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            function.launch((64, 1, 1), 256, 0, stream(), arguments, programmatic=True)
    graph.replay()
    assert torch.equal(out, torch.full_like(out, 110))


@pytest.mark.gpu
def test_captured_launches_replay(load, x):
    function = load("scale")
    out = torch.zeros_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_scale(function, out, x, 3)
    torch.cuda.synchronize()
    assert torch.equal(out, torch.zeros_like(x))
    for _ in range(2):
        x.normal_()
        graph.replay()
        assert torch.equal(out, x * 3)


@pytest.mark.gpu
def test_a_graph_outlives_the_functions_it_captured(load, x):
    function = load("scale")
    out = torch.zeros_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_scale(function, out, x, 3)
        loaded_in_capture = load("scale")
        run_scale(loaded_in_capture, out, out, 2)
    del function, loaded_in_capture
    graph.replay()
    assert torch.equal(out, x * 6)


@pytest.mark.gpu
def test_capture_id_tells_captures_apart():
    ids = []
    for _ in range(2):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            captured = stream()
            ids.append(_C.cuda_capture_id(captured))
            assert _C.cuda_capture_id(captured) == ids[-1]
            assert _C.cuda_capture_id(0) is None
            torch.zeros(1, device="cuda:0")
        assert _C.cuda_capture_id(captured) is None
    assert len(set(ids)) == 2
    assert all(isinstance(id_, int) for id_ in ids)


@pytest.mark.gpu
def test_a_thread_without_a_context_can_launch(load, x):
    function = load("scale")
    out = torch.zeros_like(x)
    torch.cuda.synchronize()
    current = torch.cuda.Stream()
    thread = threading.Thread(target=run_scale, args=(function, out, x, 3, current.cuda_stream))
    thread.start()
    thread.join()
    current.synchronize()
    assert torch.equal(out, x * 3)


@pytest.mark.gpu
def test_another_device_than_the_current_one(cubin):
    if len(cuda_devices()) < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(N, device="cuda:1")
    out = torch.empty_like(x)
    function = _C.CudaFunction(cubin, "scale", 1)
    run_scale(function, out, x, 3, torch.cuda.current_stream(1).cuda_stream)
    assert torch.cuda.current_device() == 0
    assert torch.equal(out, x * 3)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("block", "shared_bytes", "count", "message"),
    [
        (2048, 0, 4, r"cuLaunchKernelEx: CUDA_ERROR_INVALID_VALUE.*scale, grid 4x1x1, block 2048"),
        (256, 1 << 20, 4, r"cuLaunchKernelEx: CUDA_ERROR_INVALID_VALUE.*1048576 bytes"),
        (256, 0, 25, "25"),
    ],
    ids=["block", "shared", "arguments"],
)
def test_launches_that_fail_say_why_and_break_nothing(load, x, block, shared_bytes, count, message):
    function = load("scale")
    out = torch.zeros_like(x)
    arguments = (out.data_ptr(), x.data_ptr(), N, 3, *range(21))[:count]
    with pytest.raises(LaunchError, match=message):
        function.launch(GRID, block, shared_bytes, stream(), arguments)
    run_scale(function, out, x, 3)
    assert torch.equal(out, x * 3)


@pytest.mark.gpu
def test_arguments_of_a_wrong_type(load, x):
    with pytest.raises(TypeError):
        load("scale").launch(GRID, 256, 0, stream(), (x.data_ptr(), x.data_ptr(), N, 3.5))


@pytest.mark.gpu
def test_cubins_that_do_not_load(cubin):
    for damaged in (b"", b"not a cubin", cubin[: len(cubin) // 2], cubin[:-1]):
        with pytest.raises(LaunchError, match=f"{len(damaged)} bytes given are not a whole cubin"):
            _C.CudaFunction(damaged, "scale", 0)
    with pytest.raises(LaunchError, match=r"kernel nothing: CUDA_ERROR_NOT_FOUND"):
        _C.CudaFunction(cubin, "nothing", 0)
    with pytest.raises(LaunchError, match="device 99 is not one of"):
        _C.CudaFunction(cubin, "scale", 99)


@pytest.mark.gpu
def test_a_cubin_of_another_arch_does_not_load(tmp_path):
    path = tmp_path / "other.cu"
    path.write_text(SOURCE)
    other = "sm_80" if cuda_devices()[0].arch != "sm_80" else "sm_90"
    with pytest.raises(LaunchError, match=r"cuModuleLoadData: CUDA_ERROR_"):
        _C.CudaFunction(compiler.build(Unit(str(path), (), other)), "scale", 0)
