"""The stored config of a problem beside its default config, torch's 16-bit matmul and the roofline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from autotune.bench.energy import measure_energy
from autotune.bench.monitor import monitor_for
from autotune.bench.noise import DISTURBED, is_narrow, is_possible, spread
from autotune.bench.operands import Activation, Operands
from autotune.bench.race import Rounds, Runner
from autotune.bench.roofline import floor_us
from autotune.bench.statistics import Estimate, median_interval
from autotune.bench.timer import GraphTimer, Timer, timer_for
from autotune.bench.verify import Verifier
from autotune.families.protocol import Plan
from autotune.layouts import PackedWeight, dequantize
from autotune.values.config import Config
from autotune.values.errors import AutotuneError
from autotune.values.layer import Problem
from autotune.values.record import DEFAULT_MODE

_ROUNDS = 25
_NAMES = ("stored config", "default config", "matmul")
# OpenMP's threads spin for some milliseconds after torch's matmul, on a core that the next sample needs.
_HOST_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Comparison:
    """Microseconds per call of one problem, all timed in the same rounds; `floor_us` is the roofline's."""

    problem: Problem
    stored: Estimate
    default: Estimate
    matmul: Estimate
    gain: Estimate
    """Default time over stored time, round by round."""
    speedup: Estimate
    """Matmul time over stored time, round by round."""
    floor_us: float
    noisy: str = ""
    """Why the times cannot be believed, in one line."""
    energy: tuple[Estimate, ...] = ()
    """Joules of a call of the stored config, the default config and the matmul, where they were measured."""


class Matmul:
    """torch's matmul on a dense weight of x's dtype, in the place of a plan."""

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return 0

    def run(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,  # noqa: ARG002
        out: torch.Tensor,
        workspace: torch.Tensor | None,  # noqa: ARG002
    ) -> None:
        torch.mm(x, weight.qweight.T, out=out)


def compare(
    problem: Problem,
    operands: Operands,
    stored: Config,
    default: Config,
    plan_of: Callable[[Config], Plan],
    energy: bool = False,
) -> Comparison:
    """Verify and time the two configs and torch's matmul on dense copies, interleaved.

    With `energy`, runs of each config follow for a second, by which a GPU tells the energy of a call.

    Raises:
        AutotuneError: a config's output is wrong.
    """
    activations = operands.activations(problem.m)
    verifier = Verifier(operands, problem.m, seed=1)
    runs: list[tuple[Plan, Operands]] = []
    for config in (stored, default):
        plan = plan_of(config)
        wrong = verifier.error(plan)
        if wrong is not None:
            raise AutotuneError(f"{config} is wrong for {problem}: {wrong}")
        runs.append((plan, operands))
    runs.append((Matmul(), dense_operands(operands, activations[0].x.dtype)))
    timers = [timer_for(plan, of, activations) for plan, of in runs]
    runners = [Runner(timer) for timer in timers]
    rounds = Rounds(
        monitor_for(operands.device), pause_s=_HOST_PAUSE_S if operands.device.kind == "cpu" else 0.0
    )
    rounds.run(runners)
    samples = [rounds.run(runners) for _ in range(_ROUNDS)]
    stored_us, default_us, matmul_us = (median_interval(each) for each in zip(*samples, strict=True))
    gain, speedup = (median_interval([each[other] / each[0] for each in samples]) for other in (1, 2))
    floor = floor_us(problem, operands.device, stored_us.median)
    estimates = (stored_us, default_us, matmul_us)
    reasons = list(filter(None, map(_why_noisy, _NAMES, estimates, timers)))
    if not is_possible(stored_us.median, floor, DEFAULT_MODE):
        reasons.append(f"{stored_us.median:.1f} us is not possible: the roofline's time is {floor:.1f} us")
    noisy = "; ".join(reasons)
    joules = _joules(runs, activations) if energy else ()
    return Comparison(problem, stored_us, default_us, matmul_us, gain, speedup, floor, noisy, joules)


def _joules(runs: Sequence[tuple[Plan, Operands]], activations: Sequence[Activation]) -> tuple[Estimate, ...]:
    """The energy of a call of each, nothing where the device does not tell."""
    counter = monitor_for(runs[0][1].device).joules
    found = [measure_energy(GraphTimer(plan, of.copies, activations), counter) for plan, of in runs]
    return tuple(each.joules for each in found if each is not None)


def _why_noisy(name: str, estimate: Estimate, timer: Timer) -> str:
    if timer.disturbed():
        return f"{name}: {DISTURBED}"
    if not is_narrow(estimate):
        return f"{name}: {spread(estimate)}"
    return ""


def dense_operands(operands: Operands, dtype: torch.dtype) -> Operands:
    """The operands with their weight as dense copies of `dtype` [n, k], beyond three times the last cache."""
    first = dequantize(operands.weight).to(dtype)
    count = 1 + -(-3 * operands.device.l2_bytes // first.nbytes)
    copies = (first, *(first.clone() for _ in range(count - 1)))
    packed = tuple(replace(operands.copies[0], qweight=copy) for copy in copies)
    return replace(operands, copies=packed)
