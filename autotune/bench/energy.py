"""Joules per call: a GPU's energy counter over a steady run of one config's calls.

The counter is that of the whole device, rises in steps (on an H200 every 100 ms), and takes 4 ms to read
there. So calls follow each other without a pause, and the counter is read all along, while they run. Each
step is seen late by a read, but steps come at even times, so the power is what the counter rises in a step
over the mean time of a step. Power times the time of a call is its energy. What the device takes for doing
nothing is in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from autotune.bench.statistics import Estimate, median_interval
from autotune.bench.timer import Timed

STEPS = 8
"""With a power for each, which is enough for the interval of a median with 95 % confidence."""
_LEAST_S = 0.8
"""Of a run, where the counter rises more often."""
_PATIENCE_S = 4.0
"""After that a counter is thought to stand still."""
_WARM_UP_S = 0.3
"""Until the clock has settled at what the power allows."""
_BATCH_S = 0.03
"""Of calls that are enqueued at once; for most of it the counter is read."""
_READ_SHARE = 0.7

Counter = Callable[[], "float | None"]
"""The joules that the device has taken until now, None where it does not tell."""


class Steady(Timed, Protocol):
    """What can run on and on."""

    calls: int
    """Of one `start`."""


@dataclass(frozen=True, slots=True)
class Energy:
    """`joules` per call; `call_us` and `power_w` are those of the same run."""

    joules: Estimate
    call_us: float
    power_w: float


def measure_energy(timer: Steady, counter: Counter) -> Energy | None:
    """The energy of a call, in about a second; None where the device does not tell."""
    if counter() is None:
        return None
    run = _Run(timer)
    run.warm_up()
    steps, call_us = _steps(run, counter)
    if len(steps) <= STEPS:
        return None
    power = median_interval(_powers(steps))
    joules = (watts * call_us * 1e-6 for watts in (power.median, power.low, power.high))
    return Energy(Estimate(*joules), call_us, power.median)


class _Run:
    """Runs the calls in batches."""

    def __init__(self, timer: Steady) -> None:
        self._timer, self._starts = timer, 1

    def warm_up(self) -> None:
        begin, starts = time.perf_counter(), 0
        while (took_s := time.perf_counter() - begin) < _WARM_UP_S:
            self.batch(lambda: False)
            starts += 1
        self._starts = max(1, round(_BATCH_S * starts / took_s))

    def batch(self, meanwhile: Callable[[], bool]) -> int:
        """Enqueue some calls, do something until it has nothing to do, and wait; how many calls they were."""
        for _ in range(self._starts):
            self._timer.start()
        while meanwhile():
            pass
        self._timer.sample_us()
        return self._starts * self._timer.calls


def _steps(run: _Run, counter: Counter) -> tuple[list[tuple[float, float]], float]:
    """When the counter was seen to rise, and to what; and the microseconds of a call."""
    steps: list[tuple[float, float]] = []
    seen, batch_ends = counter(), 0.0

    def look() -> bool:
        nonlocal seen
        total, now = counter(), time.perf_counter()
        if total is not None and total != seen:
            seen = total
            steps.append((now, total))
        return now < batch_ends

    begin, calls = time.perf_counter(), 0
    while (took_s := (now := time.perf_counter()) - begin) < _LEAST_S + _PATIENCE_S:
        if len(steps) > STEPS and took_s >= _LEAST_S:
            break
        batch_ends = now + _READ_SHARE * _BATCH_S
        calls += run.batch(look)
    return steps, took_s * 1e6 / calls


def _powers(steps: Sequence[tuple[float, float]]) -> list[float]:
    """The watts of each step; where one was missed, two are one."""
    waits = [after[0] - before[0] for before, after in pairwise(steps)]
    usual_s = statistics.median(waits)
    counts = [max(1, round(wait / usual_s)) for wait in waits]
    step_s = sum(waits) / sum(counts)
    risen = [after[1] - before[1] for before, after in pairwise(steps)]
    return [joules / (count * step_s) for joules, count in zip(risen, counts, strict=True)]
