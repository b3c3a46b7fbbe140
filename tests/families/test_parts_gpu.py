"""A layer that is several linears: kernels that write their results one after the other, bit for bit."""

import pytest
import torch
from gpu_spaces import plans_of

from autotune.bench.operands import Operands
from autotune.families.workspace import workspace
from autotune.runtime.linear import Int4Linear
from autotune.values.device import find_device
from autotune.values.layer import Layer, Problem

pytestmark = pytest.mark.gpu

LAYERS = {
    Layer(1040, 2048): ([520, 264, 256], [1000, 40], [1040]),
    Layer(776, 1376, group_size=32, dtype="bf16", zero_point=False): ([8, 760, 8], [384, 392]),
}


def _parting(problem, count):
    """Configs of families that write parts, and their plans."""
    plans = plans_of([problem], find_device("cuda"), count)
    return [(config, plan) for _, config, plan in plans if hasattr(plan, "run_parts")]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("m", [65, 300, 513])
def test_parts_have_the_bits_of_the_whole(layer, m):
    device = find_device("cuda")
    operands = Operands.random(layer, device, seed=m)
    x, weight = operands.tokens(m, seed=m), operands.copies[0]
    bias = torch.randn(layer.n, device="cuda", dtype=x.dtype)
    wrote = 0
    for config, plan in _parting(Problem(layer, m), count=8):
        whole = torch.full((m, layer.n), torch.nan, device="cuda", dtype=x.dtype)
        scratch = workspace(x.device, plan.workspace_bytes(m))
        plan.run(x, weight, bias, whole, scratch)
        for sizes in LAYERS[layer]:
            out = torch.full_like(whole, torch.nan)
            if plan.run_parts(sizes, x, weight, bias, out, scratch):
                wrote += len(sizes) > 1
                parts = out.view(-1).split([m * size for size in sizes])
                for part, columns in zip(parts, whole.split(sizes, -1), strict=True):
                    assert torch.equal(part.view(columns.shape), columns), f"{config}, {sizes}"
    assert wrote


def test_what_a_kernel_cannot_part_is_left_alone():
    device, layer = find_device("cuda"), Layer(1040, 2048)
    operands = Operands.random(layer, device)
    x = operands.tokens(300, seed=1)
    for _, plan in _parting(Problem(layer, 300), count=2):
        for sizes in ([516, 524], [256, 256, 256, 272]):
            assert not plan.run_parts(sizes, x, operands.copies[0], None, torch.empty(0), None)


@pytest.mark.parametrize("m", [1, 40, 600])
@pytest.mark.parametrize("sizes", [[640, 256, 128], [516, 508]])
def test_a_linear_returns_its_parts(m, sizes):
    layer = Layer(1024, 2048)
    linear = Int4Linear.from_quantized(Operands.random(layer, find_device("cuda")).weight)
    x = torch.randn(2, m, layer.k, device="cuda", dtype=torch.float16)
    parts = linear.parts(x, sizes)
    for part, columns in zip(parts, linear(x).split(sizes, -1), strict=True):
        assert torch.equal(part, columns)


def test_parts_are_tensors_of_their_own_unless_someone_looks_on():
    layer, sizes = Layer(22016, 4096), [11008, 11008]
    linear = Int4Linear.from_quantized(Operands.random(layer, find_device("cuda")).weight)
    x = torch.randn(2048, layer.k, device="cuda", dtype=torch.float16)
    columns = linear(x).split(sizes, -1)
    parts = linear.parts(x, sizes)
    assert [part.stride(0) for part in parts] == sizes
    with torch.autocast("cuda", torch.float16):
        assert [part.stride(0) for part in linear.parts(x, sizes)] == [layer.n, layer.n]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = linear.parts(x, sizes)
    graph.replay()
    for part, again, column in zip(parts, captured, columns, strict=True):
        assert torch.equal(part, column)
        assert torch.equal(again, column)
