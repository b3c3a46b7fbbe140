"""What a plan is verified with, and that right plans pass: every dtype, group size and extreme magnitude."""

import itertools
from dataclasses import replace

import pytest
import torch

from autotune.bench.operands import Operands
from autotune.bench.verify import Verifier
from autotune.families import registry
from autotune.families.workspace import COUNTER_BYTES
from autotune.layouts import dequantize, unpack
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem
from autotune.values.scheme import DTYPES

DEVICE = replace(cpu_device(), l2_bytes=1 << 10, cores=4)


def layers():
    for (n, k), dtype, group, zero_point in itertools.product(
        ((8, 8), (72, 512), (136, 1376), (40, 28672)), DTYPES, (32, 128, -1), (True, False)
    ):
        if group == -1 or k % group == 0:
            yield Layer(n=n, k=k, group_size=group, dtype=dtype, zero_point=zero_point)


class Spy:
    """Computes the layer by torch and keeps what it was given."""

    def __init__(self, change=None):
        self.given = []
        self.change = change

    def workspace_bytes(self, m):
        return COUNTER_BYTES + 64 * m

    def run(self, x, weight, bias, out, workspace):
        self.given.append((x, weight, bias, len(workspace), workspace.clone()))
        total = x.float() @ dequantize(unpack(weight)).T
        out.copy_(total if bias is None else total + bias.float())
        workspace[COUNTER_BYTES:] = len(x)
        if self.change is not None:
            self.change(out)


@pytest.fixture(scope="module")
def operands():
    return Operands.random(Layer(n=72, k=512, group_size=64), DEVICE, seed=5)


@pytest.mark.parametrize("layer", list(layers()), ids=str)
def test_right_plans_are_far_from_the_tolerance(layer):
    operands = Operands.random(layer, DEVICE, seed=layer.n)
    for m in (1, 2, 3, 17, 70):
        verifier = Verifier(operands, m, seed=m)
        problem = Problem(layer, m)
        for config in registry.space(problem, DEVICE)[::5]:
            plan = registry.family_of(config).plan(config, layer, DEVICE, None)
            assert verifier.error(plan) is None, f"{config}, m={m}"
            assert verifier.deviation < 0.7


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("group", [64, -1])
def test_weights_rounded_to_the_dtype_are_right(dtype, group):
    """As dequantising kernels round them; a group that spans k has only 16 roundings a row."""

    class Rounded(Spy):
        def run(self, x, weight, bias, out, workspace):  # noqa: ARG002
            dense = dequantize(unpack(weight)).to(x.dtype).float()
            total = (x.float() @ dense.T).to(x.dtype).float()
            out.copy_(total if bias is None else total + bias.float())

    operands = Operands.random(Layer(n=520, k=2048, group_size=group, dtype=dtype), DEVICE)
    for m in (1, 40):
        verifier = Verifier(operands, m, seed=m)
        assert verifier.error(Rounded()) is None
        assert verifier.deviation < 0.9


@pytest.mark.parametrize("m", [1, 2, 3, 50])
def test_every_magnitude_is_run(operands, m):
    spy = Spy()
    assert Verifier(operands, m, seed=1).error(spy) is None
    x = torch.cat([x for x, _, bias, _, _ in spy.given if bias is None])
    results = x.float() @ dequantize(operands.weight).T
    sizes = results.abs().amax(dim=1)
    kind = torch.finfo(torch.float16)
    assert kind.max / 16 < sizes.max() < kind.max
    assert kind.tiny < sizes.min() < 64 * kind.tiny
    assert ((sizes > 1) & (sizes < 100)).any()


@pytest.mark.parametrize("m", [1, 2, 50])
def test_a_hard_weight_is_run_with_a_bias_and_fewer_tokens(operands, m):
    spy = Spy()
    assert Verifier(operands, m, seed=1).error(spy) is None
    (given,) = (given for given in spy.given if given[2] is not None)
    x, weight = given[0], unpack(given[1])
    groups = weight.q.view(72, -1, 64)
    equal = (groups == groups[:, :, :1]).all(dim=2)
    assert 0.3 < equal.float().mean() < 0.7
    assert set(weight.zeros.unique().tolist()) == {0, 15}
    assert len(x) == {1: 1, 2: 1, 50: 16}[m]
    if m > 2:
        assert x.abs().max() > 1000


def test_the_workspace_is_exact_and_poisoned_first_and_dirty_last(operands):
    spy = Spy()
    assert Verifier(operands, 50, seed=1).error(spy) is None
    *_, first_bytes, first = spy.given[0]
    *_, last = spy.given[-1]
    assert first_bytes == spy.workspace_bytes(50)
    assert not first[:COUNTER_BYTES].any()
    assert first[COUNTER_BYTES:].view(torch.float32).isnan().all()
    assert not last[:COUNTER_BYTES].any()
    few = spy.workspace_bytes(16) - COUNTER_BYTES
    body = last[COUNTER_BYTES:]
    assert body[:few].eq(16).all()
    assert body[few:].eq(50).all()


def test_a_plan_without_a_workspace_gets_none(operands):
    given = []

    class Bare(Spy):
        def workspace_bytes(self, m):  # noqa: ARG002
            return 0

        def run(self, x, weight, bias, out, workspace):
            given.append(workspace)
            super().run(x, weight, bias, out, torch.zeros(COUNTER_BYTES, dtype=torch.uint8))

    assert Verifier(operands, 5, seed=1).error(Bare()) is None
    assert given == [None] * 3


def test_other_seeds_are_other_tokens(operands):
    first, second = Spy(), Spy()
    Verifier(operands, 8, seed=1).error(first)
    Verifier(operands, 8, seed=2).error(second)
    assert not torch.equal(first.given[0][0], second.given[0][0])


def test_a_plan_after_a_broken_one_is_judged_by_itself(operands):
    verifier = Verifier(operands, 6, seed=1)

    def outside(out):
        out.as_strided((1,), (1,), out.storage_offset() - 1).fill_(1)

    assert verifier.error(Spy(outside)) == "it writes outside its output (m=6)"
    assert verifier.error(Spy(lambda out: out.mul_(1.1))) is not None
    assert verifier.deviation > 1
    assert verifier.error(Spy()) is None
    assert verifier.deviation < 1


def test_the_error_names_the_worst_element(operands):
    def change(out):
        out[2, 7] = torch.nan

    wrong = Verifier(operands, 6, seed=1).error(Spy(change))
    assert wrong is not None
    assert wrong.startswith("out[2, 7] is nan, expected ")


def test_the_first_tokens_are_verified_on_their_own(operands):
    spy, whole = Spy(), Verifier(operands, 50, seed=1)
    first = whole.first(33)
    assert first.error(spy) is None
    assert [len(x) for x, *_ in spy.given] == [33, 16, 33]

    def change(out):
        if len(out) == 33:
            out[32, 7] = torch.nan

    assert whole.error(Spy(change)) is None
    assert first.error(Spy(change)).startswith("out[32, 7] is nan, expected ")
