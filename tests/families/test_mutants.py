"""Wrong kernels are refused before they can be timed: each mutant changes one thing of a right plan."""

import random
from dataclasses import replace

import pytest
import torch

from autotune.bench.operands import Operands
from autotune.bench.verify import Verifier
from autotune.families.workspace import COUNTER_BYTES
from autotune.layouts import dequantize, unpack
from autotune.values.device import cpu_device
from autotune.values.layer import Layer

LAYER = Layer(n=72, k=512, group_size=64)
TOKENS = (1, 2, 9, 40)
SPLITS = 4


class TorchPlan:
    """Computes the layer by torch as a kernel would that splits k: partial sums in the workspace, then added.

    A mutant overrides one of the steps.
    """

    def __init__(self):
        self.calls = 0

    def workspace_bytes(self, m):
        return COUNTER_BYTES + SPLITS * m * LAYER.n * 4

    def run(self, x, weight, bias, out, workspace):
        self.calls += 1
        dense = self.dense(unpack(weight))
        counters = workspace[:COUNTER_BYTES].view(torch.int32)
        end = self.workspace_bytes(len(x))
        partials = workspace[COUNTER_BYTES:end].view(torch.float32).view(SPLITS, len(x), LAYER.n)
        for split in range(SPLITS):
            self.multiply(split, self.columns(split), x, dense, partials[split])
            counters[0] += 1
        if counters[0] == SPLITS:
            self.store(self.add(partials), bias, out)
            counters[0] = 0

    def dense(self, weight):
        return dequantize(weight)

    def columns(self, split):
        return slice(LAYER.k * split // SPLITS, LAYER.k * (split + 1) // SPLITS)

    def multiply(self, split, columns, x, dense, partial):  # noqa: ARG002
        partial.copy_(x[:, columns].float() @ dense[:, columns].T)

    def add(self, partials):
        return partials.sum(dim=0)

    def store(self, total, bias, out):
        out.copy_(total if bias is None else total + bias.float())


class MissingTailTile(TorchPlan):
    def columns(self, split):
        whole = super().columns(split)
        return slice(whole.start, whole.stop - 8 * (split == SPLITS - 1))


class SplitBoundaryOffByOne(TorchPlan):
    def columns(self, split):
        whole = super().columns(split)
        return slice(whole.start + (split > 0), whole.stop)


class SplitsOverlapByOne(TorchPlan):
    def columns(self, split):
        whole = super().columns(split)
        return slice(whole.start - (split > 0), whole.stop)


class WrongGroupIndex(TorchPlan):
    def dense(self, weight):
        return dequantize(replace(weight, scales=weight.scales.roll(1, 0), zeros=weight.zeros.roll(1, 0)))


class WrongScaleOfOneGroup(TorchPlan):
    def dense(self, weight):
        scales = weight.scales.clone()
        scales[0] = scales[1]
        return dequantize(replace(weight, scales=scales))


class ZeroOfTheNextRow(TorchPlan):
    def dense(self, weight):
        return dequantize(replace(weight, zeros=weight.zeros.roll(1, 1)))


class ZeroOffByOne(TorchPlan):
    def dense(self, weight):
        return dequantize(replace(weight, zeros=weight.zeros + 1))


class ZeroFifteenIsFourteen(TorchPlan):
    def dense(self, weight):
        return dequantize(replace(weight, zeros=weight.zeros.clamp(max=14)))


class SwappedNibbles(TorchPlan):
    def dense(self, weight):
        q = weight.q.clone()
        q[-1, 8:10] = weight.q[-1, [9, 8]]
        return dequantize(replace(weight, q=q))


class SwappedRows(TorchPlan):
    def dense(self, weight):
        return dequantize(weight)[[*range(LAYER.n - 2), LAYER.n - 1, LAYER.n - 2]]


class RangeOfNibblesTooNarrow(TorchPlan):
    """q - z of -15 does not fit: such a pair is rare in a random weight."""

    def dense(self, weight):
        wide = dequantize(weight).view(LAYER.n, LAYER.groups, -1)
        scales = weight.scales.float().T.unsqueeze(2)
        return torch.maximum(wide, -14 * scales).view(LAYER.n, LAYER.k)


class HalfPrecisionAccumulation(TorchPlan):
    def multiply(self, split, columns, x, dense, partial):  # noqa: ARG002
        total = torch.zeros_like(partial, dtype=x.dtype)
        for at in range(columns.start, columns.stop):
            total += (x[:, at : at + 1].float() * dense[:, at]).to(x.dtype)
        partial.copy_(total)


class SumsOverflowBeforeTheyAreScaled(TorchPlan):
    def multiply(self, split, columns, x, dense, partial):
        super().multiply(split, columns, x, dense, partial)
        partial.copy_((partial * 64).to(x.dtype).float() / 64)


class SmallResultsAreFlushed(TorchPlan):
    def store(self, total, bias, out):
        super().store(total, bias, out)
        out[out.abs() < torch.finfo(out.dtype).tiny] = 0


class UnwrittenColumn(TorchPlan):
    def store(self, total, bias, out):
        super().store(total[:, :-1], None if bias is None else bias[:-1], out[:, :-1])


class UnwrittenToken(TorchPlan):
    def store(self, total, bias, out):
        super().store(total[:-1], bias, out[:-1])


class OneWrongElement(TorchPlan):
    def store(self, total, bias, out):
        super().store(total, bias, out)
        out[-1, 3] *= 1.1


class ForgetsTheBias(TorchPlan):
    def store(self, total, bias, out):  # noqa: ARG002
        super().store(total, None, out)


class AddsTheBiasOncePerSplit(TorchPlan):
    def store(self, total, bias, out):
        super().store(total, None if bias is None else SPLITS * bias, out)


class WritesBeforeItsOutput(TorchPlan):
    def store(self, total, bias, out):
        super().store(total, bias, out)
        out.as_strided((1,), (1,), out.storage_offset() - 1).fill_(1.0)


class WritesBehindItsOutput(TorchPlan):
    def store(self, total, bias, out):
        super().store(total, bias, out)
        out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(torch.nan)


class WritesBeforeItsWorkspace(TorchPlan):
    def run(self, x, weight, bias, out, workspace):
        super().run(x, weight, bias, out, workspace)
        workspace.as_strided((1,), (1,), workspace.storage_offset() - 1).fill_(0)


class WritesBehindItsWorkspace(TorchPlan):
    def run(self, x, weight, bias, out, workspace):
        super().run(x, weight, bias, out, workspace)
        workspace.as_strided((1,), (1,), workspace.storage_offset() + workspace.numel()).fill_(0)


class AddsToAStaleWorkspace(TorchPlan):
    def multiply(self, split, columns, x, dense, partial):  # noqa: ARG002
        partial += x[:, columns].float() @ dense[:, columns].T


class ReadsWhatAnEarlierRunLeft(TorchPlan):
    """Adds a little of what it finds, where that is a number: nothing while the workspace is new."""

    def multiply(self, split, columns, x, dense, partial):
        stale = partial.nan_to_num().clamp(-1, 1)
        super().multiply(split, columns, x, dense, partial)
        partial.mul_(1 + stale.abs() * 2.0**-10)


class LeavesItsCounters(TorchPlan):
    def run(self, x, weight, bias, out, workspace):
        super().run(x, weight, bias, out, workspace)
        workspace[COUNTER_BYTES - 1] = 1


class LostUpdate(TorchPlan):
    """A race: every second time one of two writers of a partial sum loses."""

    def add(self, partials):
        total = super().add(partials)
        if self.calls % 2:
            total[-1, -1] -= partials[1, -1, -1]
        return total


class DiffersWithinTheTolerance(TorchPlan):
    """A race that costs the last bit of some results."""

    def store(self, total, bias, out):
        super().store(total, bias, out)
        if self.calls == 1:
            out.view(torch.int16)[0, :8] ^= 1


class DoesNothing(TorchPlan):
    """As a launch does that fails without a word."""

    def run(self, x, weight, bias, out, workspace):
        pass


MUTANTS = TorchPlan.__subclasses__()


@pytest.fixture(scope="module")
def operands():
    return Operands.random(LAYER, cpu_device(), seed=5)


@pytest.fixture(scope="module")
def verifiers(operands):
    return {m: Verifier(operands, m, seed=m) for m in TOKENS}


@pytest.mark.parametrize("m", TOKENS)
def test_the_right_plan_passes(verifiers, m):
    assert verifiers[m].error(TorchPlan()) is None
    assert 0 < verifiers[m].deviation < 0.6


@pytest.mark.parametrize("m", TOKENS)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_refused(verifiers, mutant, m):
    assert verifiers[m].error(mutant()) is not None


@pytest.mark.parametrize(
    ("mutant", "reason"),
    [
        (WritesBehindItsOutput, "it writes outside its output"),
        (WritesBeforeItsWorkspace, "it writes outside its workspace"),
        (LeavesItsCounters, "counters in its workspace that are not zero"),
        (ReadsWhatAnEarlierRunLeft, "two runs on the same data differ"),
        (DiffersWithinTheTolerance, "two runs on the same data differ"),
        (UnwrittenToken, r"out\[\d+, \d+\] is nan"),
        (DoesNothing, r"out\[0, 0\] is nan"),
    ],
)
def test_the_reason_is_told(verifiers, mutant, reason):
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(verifiers[9].error(mutant()))


@pytest.mark.parametrize(
    "mutant", [MissingTailTile, WrongGroupIndex, ZeroOffByOne, SwappedRows, SumsOverflowBeforeTheyAreScaled]
)
def test_a_mutant_is_far_off(verifiers, mutant):
    verifiers[9].error(mutant())
    assert verifiers[9].deviation > 3


def test_an_unordered_sum_is_refused():
    """fp32 shows the order of a sum in its last bits."""
    layer = replace(LAYER, dtype="fp32")

    class Ordered(TorchPlan):
        def add(self, partials):
            return sum(partials)

    class Unordered(TorchPlan):
        def add(self, partials):
            first = random.choice(range(SPLITS))
            return sum(partials.roll(first, 0))

    random.seed(1)
    verifier = Verifier(Operands.random(layer, cpu_device(), seed=1), 4, seed=1)
    assert verifier.error(Ordered()) is None
    assert any(verifier.error(Unordered()) == "two runs on the same data differ (m=4)" for _ in range(8))
