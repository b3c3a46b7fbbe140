"""Joules per call: a GPU's energy counter over a steady run of one config's calls.

The counter moves in steps of some 20 to 100 ms, and counts for the whole device. So calls follow each other
without a pause, and the counter is read all along: what it rose from one step to a later one, over the time
between, is the power, however long a step is. Power times the time of a call is its energy. What the device
takes for doing nothing is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from autotune.bench.statistics import Estimate, median_interval
from autotune.bench.timer import Timed

WINDOWS = 7
"""As many powers as give a median an interval of 95 % confidence."""
WINDOW_S = 0.1
_WARM_UP_S = 0.3
"""Until the clock has settled at what the power allows."""
_BATCH_S = 0.002
"""Of calls that are enqueued at once. A step of the counter is seen that much later at most."""
_PATIENCE_S = 3.0
"""How much longer than that it may take, until the counter is thought to stand still."""

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
    powers, call_us = _powers(run, counter)
    if len(powers) < WINDOWS:
        return None
    power = median_interval(powers)
    joules = (watts * call_us * 1e-6 for watts in (power.median, power.low, power.high))
    return Energy(Estimate(*joules), call_us, power.median)


class _Run:
    """Runs the calls in batches."""

    def __init__(self, timer: Steady) -> None:
        self._timer, self._starts = timer, 1

    def warm_up(self) -> None:
        begin, starts = time.perf_counter(), 0
        while (took_s := time.perf_counter() - begin) < _WARM_UP_S:
            self.batch()
            starts += 1
        self._starts = max(1, round(_BATCH_S * starts / took_s))

    def batch(self, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Enqueue some calls, and wait for them once `meanwhile` is done; how many they were."""
        for _ in range(self._starts):
            self._timer.start()
        meanwhile()
        self._timer.sample_us()
        return self._starts * self._timer.calls


def _powers(run: _Run, counter: Counter) -> tuple[list[float], float]:
    """The watts of each window, from one step of the counter to another, and the microseconds of a call."""
    powers: list[float] = []
    seen = counter()
    since: tuple[float, float] | None = None

    def look() -> None:
        nonlocal seen, since
        total, now = counter(), time.perf_counter()
        if total is None or total == seen:
            return
        seen = total
        if since is None:
            since = now, total
        elif now - since[0] >= WINDOW_S:
            powers.append((total - since[1]) / (now - since[0]))
            since = now, total

    begin, calls = time.perf_counter(), 0
    while len(powers) < WINDOWS and time.perf_counter() - begin < WINDOWS * WINDOW_S + _PATIENCE_S:
        calls += run.batch(look)
    return powers, (time.perf_counter() - begin) * 1e6 / calls
