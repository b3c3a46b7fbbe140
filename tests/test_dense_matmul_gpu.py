"""Dense products by cuBLASLt, against fp64."""

import threading

import pytest
import torch

from autotune import _C
from autotune.errors import LaunchError

pytestmark = pytest.mark.gpu

N, K = 1032, 520


def address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def product(matmul, x, w, bias, out, stream=None):
    """out[m, :rows] of a matmul for N, K; a workspace of NaN."""
    scratch = torch.full((_C.DenseMatmul.WORKSPACE_BYTES // 4,), torch.nan, device=x.device)
    stream = stream or torch.cuda.current_stream(x.device)
    sizes = len(x), len(w)
    matmul.run(
        address(x), address(w), address(bias), address(out), address(scratch), *sizes, stream.cuda_stream
    )


def operands(m, rows, dtype=torch.float16, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    shapes = (m, K), (rows, K), (rows,)
    return [torch.randn(shape, device="cuda", generator=generator).to(dtype) for shape in shapes]


def expected(x, w, bias):
    return x.double() @ w.double().T + (0 if bias is None else bias.double())


def check(out, want):
    error = (out.double() - want).norm() / want.norm()
    assert error < (5e-4 if out.dtype == torch.float16 else 4e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("m", "rows"), [(1, 8), (17, 64), (300, 1032), (1024, 960), (2049, 1032)])
def test_is_right_and_writes_its_columns_only(m, rows, with_bias, dtype):
    matmul = _C.DenseMatmul(0, N, K, dtype == torch.bfloat16)
    x, w, bias = operands(m, rows, dtype)
    bias = bias if with_bias else None
    out = torch.full((m, N), torch.nan, device="cuda", dtype=dtype)
    product(matmul, x, w, bias, out)
    check(out[:, :rows], expected(x, w, bias))
    assert out[:, rows:].isnan().all()
    again = torch.empty_like(out)
    product(matmul, x, w, bias, again)
    assert torch.equal(again[:, :rows], out[:, :rows])


def test_more_sizes_than_are_kept_take_turns_and_addresses_need_16_bytes_only():
    matmul = _C.DenseMatmul(0, N, K, False)
    everything, w, bias = operands(200, 512)
    outputs = torch.full((200, N), torch.nan, device="cuda", dtype=torch.float16)
    for _ in range(2):
        for start in range(1, 60):
            x, out = everything[start : start + 3 * start], outputs[start : start + 3 * start]
            x = x[: 200 - start]
            product(matmul, x, w, bias, out)
            check(out[: len(x), :512], expected(x, w, bias))


def test_a_captured_product_reads_its_bias():
    matmul = _C.DenseMatmul(0, N, K, False)
    (x, w, bias), (_, _, other) = operands(64, 256), operands(64, 256, seed=1)
    out, scrap = (torch.empty(64, N, device="cuda", dtype=torch.float16) for _ in range(2))
    product(matmul, x, w, bias, out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        product(matmul, x, w, bias, out)
    product(matmul, x, w, other, scrap)
    out.fill_(torch.nan)
    graph.replay()
    check(out[:, :256], expected(x, w, bias))
    check(scrap[:, :256], expected(x, w, other))


def test_threads_share_one():
    matmul, wrong = _C.DenseMatmul(0, N, K, False), []

    def work(seed):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            x, w, bias = operands(40 + seed, 256, seed=seed)
            out = torch.empty(len(x), N, device="cuda", dtype=torch.float16)
            for _ in range(20):
                product(matmul, x, w, bias, out, stream)
                want = expected(x, w, bias)
                if (out[:, :256].double() - want).norm() > 5e-4 * want.norm():
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_cublas_does_not_do_is_an_error_with_its_numbers():
    matmul = _C.DenseMatmul(0, N, K, False)
    x, w, _ = operands(8, 64)
    out = torch.empty(8, N, device="cuda", dtype=torch.float16)
    with pytest.raises(LaunchError, match=rf"product of 0 x 64 x {K}|cuBLAS status"):
        matmul.run(address(x), address(w), 0, address(out), address(out), 0, 64, 0)
    with pytest.raises(LaunchError, match="device 99 is not one of"):
        _C.DenseMatmul(99, N, K, False)
