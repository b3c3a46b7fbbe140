"""How much is lost by configs that were chosen without a sweep: each against the best that was timed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.prediction.fitting import Timing, best_us
from autotune.prediction.predictor import Predictor
from autotune.values.config import Config
from autotune.values.layer import Layer, Problem

Way = Callable[[Problem], Sequence[Config]]
"""What a way of choosing would run for a problem, the first choice first."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A choice for a problem: the first of its way that was timed there, and that time over the best less 1.

    `timed` says whether that is the way's first choice.
    """

    problem: Problem
    config: Config
    loss: float
    timed: bool


@dataclass(frozen=True, slots=True)
class Losses:
    """Of many picks: mean, what 95 % of them stay within, the worst, how many, and how many untimed."""

    mean: float
    most: float
    worst: float
    count: int
    untimed: int

    @classmethod
    def of(cls, picks: Sequence[Pick]) -> Losses:
        losses = np.array([pick.loss for pick in picks])
        most = float(np.quantile(losses, 0.95))
        untimed = sum(not pick.timed for pick in picks)
        return cls(float(losses.mean()), most, float(losses.max()), len(picks), untimed)


def picks(way: Way, timings: Iterable[Timing]) -> list[Pick]:
    """What the way picks for each problem of the timings; none where nothing that it would run was timed."""
    timed: dict[Problem, dict[Config, float]] = defaultdict(dict)
    for timing in timings:
        timed[timing.problem][timing.config] = timing.us
    found = []
    for problem, times in timed.items():
        wanted = list(way(problem))
        config = next((each for each in wanted if each in times), None)
        if config is not None:
            loss = times[config] / min(times.values()) - 1
            found.append(Pick(problem, config, loss, config == wanted[0]))
    return found


def unseen(
    timings: Sequence[Timing], layers: Collection[tuple[int, int]]
) -> tuple[list[Timing], list[Timing]]:
    """The timings of other sizes n x k, and of these."""
    seen = [each for each in timings if _size(each.problem.layer) not in layers]
    return seen, [each for each in timings if _size(each.problem.layer) in layers]


def halved(timings: Sequence[Timing], predictor: Predictor) -> list[Pick]:
    """What a sweep of half the configs of each problem finds, those that are predicted to be the fastest."""
    timed: dict[Problem, dict[Config, float]] = defaultdict(dict)
    for timing in timings:
        timed[timing.problem][timing.config] = timing.us
    best = best_us(timings)
    found = []
    for problem, times in timed.items():
        half = predictor.ordered(problem, sorted(times))[: -(-len(times) // 2)]
        winner = min(half, key=lambda config: times[config])
        found.append(Pick(problem, winner, times[winner] / best[problem] - 1, True))
    return found


def _size(layer: Layer) -> tuple[int, int]:
    return layer.n, layer.k
