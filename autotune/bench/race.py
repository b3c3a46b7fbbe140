"""A race: candidates are timed round by round, and leave when they are slower for certain.

Racing goes back to Maron and Moore, "Hoeffding races" (1994). Here a candidate leaves when the interval of
its ratio to the leader, round by round, lies above 1 + MARGIN. The race looks several times at several
candidates, so each look has its share of the error that the whole race may make (Bonferroni). Two graphs of
one and the same kernel differ by up to 0.4 % on an H200 for as long as they live, which no number of rounds
removes: hence the margin.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autotune.bench.monitor import Monitor, Reading
from autotune.bench.noise import is_narrow
from autotune.bench.statistics import Estimate, can_decide, median_interval, ratio_interval
from autotune.bench.timer import Timer, time_round

MARGIN = 0.005
ERROR = 0.02
LOOKS = (13, 16, 20, 25, 32, 40, 50, 64, 80, 100)

_FEWEST_ROUNDS = 7
_CLOCK_SHARE = 0.98
_REPEATS = 2
_REST_S = 0.05
_LONG_ROUND_S = 0.004


@dataclass(slots=True)
class Runner:
    """One timer in a race and its samples in microseconds; `left_after` rounds it was slower for certain."""

    timer: Timer
    samples_us: list[float] = field(default_factory=list)
    left_after: int | None = None

    @property
    def median_us(self) -> float:
        """Median of the samples so far."""
        return self.estimate.median

    @property
    def estimate(self) -> Estimate:
        """Median of the samples so far, with its interval."""
        return median_interval(self.samples_us)


class Rounds:
    """Gives rounds of samples, in a new order each time, and repeats those at a lowered clock, after a rest.

    Between long rounds a GPU rests, for as long as the last one took: about 80 ms of large matmuls in a row
    make an H200 lower its clock by a fifth, to keep its power, and its clock reading follows late. A clock
    that rests do not bring back is taken as it is. `pause_s` is a rest before every sample. `readings` has
    what the device said after each round, repeated ones too.
    """

    def __init__(self, monitor: Monitor, seed: int = 0, pause_s: float = 0.0) -> None:
        self._monitor, self._pause_s = monitor, pause_s
        self._order = random.Random(seed)
        self._top_mhz = 0
        self._rest_s = 0.0
        self.readings: list[Reading] = []

    def run(self, runners: Sequence[Runner]) -> list[float]:
        """One sample of each runner."""
        samples, lowered = self._once(runners)
        for _ in range(_REPEATS):
            if not lowered:
                return samples
            time.sleep(_REST_S)
            samples, lowered = self._once(runners)
        if lowered:  # the next rounds need not wait for it either
            self._top_mhz = self.readings[-1].clock_mhz or 0
        return samples

    def _once(self, runners: Sequence[Runner]) -> tuple[list[float], bool]:
        order = self._order.sample(range(len(runners)), len(runners))
        time.sleep(self._rest_s)
        timers = [runners[place].timer for place in order]
        begin = time.monotonic()
        timed = dict(zip(order, time_round(timers, self._pause_s), strict=True))
        took_s = time.monotonic() - begin
        reading = self._monitor.read()
        self.readings.append(reading)
        clock = reading.clock_mhz
        if clock is not None:
            self._rest_s = took_s if took_s > _LONG_ROUND_S else 0.0
            self._top_mhz = max(self._top_mhz, clock)
        lowered = clock is not None and clock < _CLOCK_SHARE * self._top_mhz
        return [timed[place] for place in range(len(runners))], lowered


def race(
    runners: Sequence[Runner],
    rounds: Rounds,
    keep: Runner | None = None,
    is_over: Callable[[], bool] = lambda: False,
    beside: Sequence[Runner] = (),
) -> None:
    """Time the runners until all but one have left, the last look is over, or `is_over()`.

    The last one is timed on until its interval is narrow. `keep` is timed to the end even when it has left.
    Those `beside` are timed in every round and have no part in who leaves or when the race ends. Samples stay
    with the runners, the n-th of each from the n-th round; those that all of them come with are of its first.
    """
    running = list(runners)
    confidence = 1 - ERROR / (len(LOOKS) * max(1, len(runners) - 1))
    for number in range(len(runners[0].samples_us) + 1, LOOKS[-1] + 1):
        if number > _FEWEST_ROUNDS and is_over():
            return
        timed = (*running, *beside)
        for runner, sample in zip(timed, rounds.run(timed), strict=True):
            runner.samples_us.append(sample)
        if number not in LOOKS or not can_decide(number, confidence):
            continue
        leader = min(running, key=lambda runner: runner.median_us)
        for runner in running:
            if runner is not leader and is_slower(runner.samples_us, leader.samples_us, confidence):
                runner.left_after = runner.left_after or number
        if sum(runner.left_after is None for runner in runners) == 1 and is_narrow(leader.estimate):
            return
        running = [runner for runner in running if runner.left_after is None or runner is keep]


def is_slower(samples: Sequence[float], leader: Sequence[float], confidence: float = 1 - ERROR) -> bool:
    """Whether the samples are slower than the leader's by more than the margin, for certain."""
    common = min(len(samples), len(leader))
    return ratio_interval(samples[:common], leader[:common], confidence).low > 1 + MARGIN
