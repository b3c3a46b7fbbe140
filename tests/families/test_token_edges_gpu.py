"""Numbers of tokens around a tile's: what stands beside x, in memory or shared memory, changes nothing."""

import pytest
import torch
from gpu_spaces import plans_of

from autotune import _C
from autotune.bench.operands import Operands
from autotune.families.gemm import current_stream
from autotune.families.workspace import workspace
from autotune.jit import compiler
from autotune.jit.unit import Unit
from autotune.schemes.int4 import reference_matmul
from autotune.values.device import find_device
from autotune.values.layer import Layer, Problem

pytestmark = pytest.mark.gpu

LAYERS = Layer(1040, 2048), Layer(776, 1376, group_size=32, dtype="bf16", zero_point=False)
TILES = (4, 8, 16, 32, 64, 128, 256)
LARGEST_ERROR = {"fp16": 1e-3, "bf16": 6e-3}
# 0x7fff7fff is NaN as fp32, and twice NaN as fp16 and as bf16.
FILL = """
extern "C" __global__ void fill(long long words) {
  extern __shared__ volatile unsigned shared[];
  for (long long i = threadIdx.x; i < words; i += blockDim.x) shared[i] = 0x7fff7fffu;
}
"""


@pytest.fixture(scope="module")
def fill(tmp_path_factory):
    """Fills the shared memory of every multiprocessor with NaN."""
    device = find_device("cuda")
    path = tmp_path_factory.mktemp("fill") / "fill.cu"
    path.write_text(FILL)
    function = _C.CudaFunction(compiler.build(Unit(str(path), (), device.arch)), "fill", device.index)

    def run():
        grid, stream = (4 * device.cores, 1, 1), current_stream(device)
        function.launch(grid, 1024, device.shared_bytes, stream, (device.shared_bytes // 4,))

    return run


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("tile", TILES)
def test_nothing_beside_x_is_seen(fill, layer, tile):
    device = find_device("cuda")
    operands = Operands.random(layer, device, seed=tile)
    problems = [Problem(layer, m) for m in (tile - 1, tile, tile + 1)]
    for problem, config, plan in plans_of(problems, device, count=4):
        m = problem.m
        rows = torch.full((m + 256, layer.k), torch.nan, device="cuda", dtype=operands.weight.scales.dtype)
        x = rows[128 : 128 + m]
        x.copy_(operands.tokens(m, seed=m))
        out = torch.full((m, layer.n), torch.nan, device="cuda", dtype=x.dtype)
        scratch = workspace(x.device, plan.workspace_bytes(m))
        fill()
        plan.run(x, operands.copies[0], None, out, scratch)
        expected = reference_matmul(operands.weight, x)
        error = (out.float() - expected).norm() / expected.norm()
        assert error < LARGEST_ERROR[layer.dtype], f"{config}, m={m}"
