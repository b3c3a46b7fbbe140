"""Wrong kernels are refused before they can be timed: each mutant changes one thing of a right result."""

import pytest
import torch

from autotune.bench.operands import Operands
from autotune.bench.verify import Verifier
from autotune.device import cpu_device
from autotune.layer import Layer
from autotune.packing import dequantize

LAYER = Layer(n=72, k=512, group_size=64)


class Mutant:
    """A plan that computes the layer by torch and then breaks the result as `change` says."""

    def __init__(self, operands, change):
        self.weight = dequantize(operands.weight)
        self.change = change
        self.calls = 0

    def workspace_bytes(self, m):  # noqa: ARG002
        return 0

    def run(self, x, weight, bias, out, workspace):  # noqa: ARG002
        self.calls += 1
        self.change(self, x, out)


def right(plan, x, out):
    out.copy_(x.float() @ plan.weight.T)


def missing_tail_tile(plan, x, out):
    out.copy_(x[:, :-64].float() @ plan.weight[:, :-64].T)


def wrong_group(plan, x, out):
    shifted = plan.weight.clone()
    shifted[:, :64] *= 1.5
    out.copy_(x.float() @ shifted.T)


def unwritten_column(plan, x, out):
    out[:, :-1] = (x.float() @ plan.weight[:-1].T).to(out.dtype)


def wrong_in_one_row(plan, x, out):
    right(plan, x, out)
    out[-1, 3] += 0.05


def writes_before_its_output(plan, x, out):
    right(plan, x, out)
    out.as_strided((1,), (1,), out.storage_offset() - 1).fill_(1.0)


def writes_after_its_output(plan, x, out):
    right(plan, x, out)
    out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(1.0)


def does_nothing(plan, x, out):
    pass


def differs_between_runs(plan, x, out):
    right(plan, x, out)
    if plan.calls % 2:
        out[0, 0] = torch.nextafter(out[0, 0].float() * 1.0006, torch.tensor(9.0)).to(out.dtype)


def half_precision_accumulation(plan, x, out):
    total = torch.zeros_like(out)
    for column in range(x.shape[1]):
        total += (x[:, column : column + 1].float() @ plan.weight[:, column : column + 1].T).to(out.dtype)
    out.copy_(total)


MUTANTS = [
    missing_tail_tile,
    wrong_group,
    unwritten_column,
    wrong_in_one_row,
    writes_before_its_output,
    writes_after_its_output,
    does_nothing,
    differs_between_runs,
    half_precision_accumulation,
]


@pytest.fixture(scope="module")
def operands():
    return Operands.random(LAYER, cpu_device(), seed=5)


def test_a_right_result_passes(operands):
    assert Verifier(operands, 9, seed=1).error(Mutant(operands, right)) is None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_wrong_result_is_refused(operands, mutant):
    assert Verifier(operands, 9, seed=1).error(Mutant(operands, mutant)) is not None
