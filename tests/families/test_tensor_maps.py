"""Matrices as tensor maps of a launch, fetched by the copy engine: what lies where, and what fails."""

import pytest
import torch

from autotune import _C
from autotune.jit import compiler
from autotune.jit.unit import Unit
from autotune.values.device import cuda_devices
from autotune.values.errors import LaunchError

ROWS = 16
SOURCE = """
#include "common/wgmma.cuh"

// The box of at most 16 rows at this column, without its swizzle; ones stand where nothing is fetched to.
extern "C" __global__ void fetch(const __grid_constant__ TensorMap x, u16* out, long long rows,
                                 long long column) {
  __shared__ __align__(1024) u16 box[16 * 64];
  __shared__ u64 memory;
  const u32 barrier = shared_address(&memory);
  for (int i = threadIdx.x; i < 16 * 64; i += blockDim.x) box[i] = 1;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(barrier, (rows < 16 ? rows : 16) * 128);
    cp_async_bulk_tensor_2d(shared_address(box), &x, static_cast<int>(column), 0, barrier);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < 16 * 64; i += blockDim.x)
    out[i] = box[i / 64 * 64 + (i / 8 % 8 ^ i / 64 % 8) * 8 + i % 8];
}
"""


@pytest.fixture(scope="module")
def cubin(tmp_path_factory):
    path = tmp_path_factory.mktemp("maps") / "fetch.cu"
    path.write_text(SOURCE)
    return compiler.build(Unit(str(path), (), "sm_90a"))


@pytest.fixture
def load(cubin):
    if _C.cuda_devices()[0]["major"] != 9:
        pytest.skip("tensor maps need sm_90")
    return lambda columns, bf16=False: _C.CudaFunction(cubin, "fetch", 0, (columns, ROWS, bf16))


def fetched(function, x, column):
    out = torch.full((ROWS, 64), 7.0, device=x.device, dtype=x.dtype)
    arguments = (x.data_ptr(), len(x), out.data_ptr(), len(x), column)
    function.launch((1, 1, 1), 128, 0, torch.cuda.current_stream(0).cuda_stream, arguments)
    return out


def expected(x, column):
    out = torch.ones(ROWS, 64, device=x.device, dtype=torch.uint16).view(x.dtype)
    part = x[:ROWS, column : column + 64]
    out[: part.shape[0]] = 0
    out[: part.shape[0], : part.shape[1]] = part
    return out


@pytest.mark.skipif(compiler.find_compiler() is None, reason="no CUDA compiler here")
def test_the_kernel_of_these_tests_compiles(cubin):
    assert b"fetch" in cubin


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(16, 256), (40, 72), (5, 200), (1, 8)])
def test_a_box_has_the_rows_of_the_matrix_and_zeros_beyond_its_columns(load, rows, columns, dtype):
    function = load(columns, dtype == torch.bfloat16)
    x = torch.randn(rows, columns, device="cuda:0", dtype=dtype)
    for column in {0, 64, columns - columns % 64, columns + 64}:
        assert torch.equal(fetched(function, x, column), expected(x, column))


@pytest.mark.gpu
def test_many_matrices_take_turns(load):
    function = load(64)
    matrices = [torch.randn(3 + i % 5, 64, device="cuda:0", dtype=torch.float16) for i in range(11)]
    for x in (*matrices, *reversed(matrices), *(matrix[1:] for matrix in matrices)):
        assert torch.equal(fetched(function, x, 0), expected(x, 0))


@pytest.mark.gpu
def test_a_captured_launch_keeps_its_matrix(load):
    function = load(64)
    x = torch.randn(ROWS, 64, device="cuda:0", dtype=torch.float16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fetched(function, x, 0)
    for _ in range(6):
        fetched(function, torch.randn_like(x), 0)
    x.normal_()
    graph.replay()
    assert torch.equal(out, x)


@pytest.mark.gpu
def test_a_matrix_that_cannot_be_fetched_fails_with_its_numbers(load):
    x = torch.randn(ROWS * 64 + 8, device="cuda:0", dtype=torch.float16)
    with pytest.raises(LaunchError, match=rf"16 rows of 64 .*{x.data_ptr() + 2}.*multiples of 16"):
        fetched(load(64), x[1 : ROWS * 64 + 1].view(ROWS, 64), 0)
    with pytest.raises(LaunchError, match="16 rows of 36 "):
        fetched(load(36), x[: ROWS * 36].view(ROWS, 36), 0)
    with pytest.raises(LaunchError, match="address and rows come first"):
        load(64).launch((1, 1, 1), 128, 0, 0, (x.data_ptr(),))


def test_boxes_are_three_numbers(cubin):
    with pytest.raises(TypeError):
        _C.CudaFunction(cubin, "fetch", 0, (64, ROWS))


@pytest.mark.skipif(bool(cuda_devices()), reason="this machine has a GPU")
def test_without_a_driver_the_reason_is_that_of_any_kernel(cubin):
    with pytest.raises(LaunchError, match="no CUDA device"):
        _C.CudaFunction(cubin, "fetch", 0, (64, ROWS, False))
