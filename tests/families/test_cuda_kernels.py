"""Every CUDA family x config sample x dtype x group size x odd shape against the fp32 reference."""

import itertools

import pytest
import torch
from gpu_spaces import plans_of

from autotune.bench.operands import Operands
from autotune.bench.verify import Verifier
from autotune.families.workspace import workspace
from autotune.layouts import dequantize
from autotune.values.device import find_device
from autotune.values.layer import Layer, Problem

pytestmark = pytest.mark.gpu

SHAPES = ((64, 128), (8, 8), (72, 136), (136, 1032), (1376, 4096), (4096, 1376), (520, 11008))
MS = (1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 65, 130)


def layers():
    for (n, k), dtype, group, zero_point in itertools.product(
        SHAPES, ("fp16", "bf16"), (32, 64, 128, -1), (True, False)
    ):
        if group == -1 or k % group == 0:
            yield Layer(n=n, k=k, group_size=group, dtype=dtype, zero_point=zero_point)


@pytest.mark.parametrize("layer", list(layers()), ids=str)
def test_matches_reference_and_repeats(layer):
    device = find_device("cuda")
    operands = Operands.random(layer, device, seed=layer.n + layer.k)
    verifiers = {m: Verifier(operands, m, seed=m) for m in MS}
    for problem, config, plan in plans_of([Problem(layer, m) for m in MS], device, count=2):
        error = verifiers[problem.m].error(plan)
        assert error is None, f"{config}: {error}"


@pytest.mark.parametrize("m", [1, 5, 16, 64, 300])
def test_whole_space_of_a_layer(m):
    device = find_device("cuda")
    layer = Layer(n=1040, k=2048)
    operands = Operands.random(layer, device)
    verifier = Verifier(operands, m, seed=3)
    plans = plans_of([Problem(layer, m)], device, count=10**6)
    wrong = {str(config): error for _, config, plan in plans if (error := verifier.error(plan))}
    assert not wrong


@pytest.mark.parametrize("m", [1, 7, 20, 512])
def test_bias_is_added(m):
    device = find_device("cuda")
    layer = Layer(n=136, k=512, group_size=64)
    operands = Operands.random(layer, device)
    x = operands.tokens(m, seed=1)
    bias = torch.randn(layer.n, device="cuda", dtype=torch.float16)
    expected = x.double() @ dequantize(operands.weight).double().T + bias.double()
    for _, config, plan in plans_of([Problem(layer, m)], device, count=3):
        out = torch.full((m, layer.n), torch.nan, device="cuda", dtype=torch.float16)
        plan.run(x, operands.copies[0], bias, out, workspace(x.device, plan.workspace_bytes(m)))
        torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=4e-3, msg=str(config))


def test_more_tokens_than_the_largest_bucket():
    device = find_device("cuda")
    layer = Layer(n=128, k=512)
    operands = Operands.random(layer, device)
    verifier = Verifier(operands, 9000, seed=1)
    for _, config, plan in plans_of([Problem(layer, 4096)], device, count=6):
        assert verifier.error(plan) is None, str(config)
