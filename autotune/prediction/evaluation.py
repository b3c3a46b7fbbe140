"""How much is lost by configs that were chosen without a sweep: each against the best that was timed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.families import registry
from autotune.prediction.fitting import Timing, best_us
from autotune.prediction.predictor import Predictor
from autotune.prediction.pruning import far
from autotune.prediction.saving import saving_us
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


@dataclass(frozen=True, slots=True)
class Kept:
    """The best of `kept` of all `configs` of a problem."""

    pick: Pick
    kept: int
    configs: int


@dataclass(frozen=True, slots=True)
class Saving:
    """Shares of the time of a call that a sweep was expected to save, and `found` to."""

    problem: Problem
    expected: float
    found: float


def picks(way: Way, timings: Iterable[Timing]) -> list[Pick]:
    """What the way picks for each problem of the timings; none where nothing that it would run was timed."""
    found = []
    for problem, times in _by_problem(timings).items():
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


def kept(timings: Iterable[Timing], predictor: Predictor) -> list[Kept]:
    """What a sweep finds of each problem that leaves out what is predicted to be slow; the default stays."""
    found = []
    for problem, times in _by_problem(timings).items():
        left_out = far(predictor, problem, sorted(times))
        left_out.pop(registry.default_config(problem, predictor.device), None)
        winner = min(times.keys() - left_out.keys(), key=lambda config: times[config])
        pick = Pick(problem, winner, times[winner] / min(times.values()) - 1, True)
        found.append(Kept(pick, len(times) - len(left_out), len(times)))
    return found


def expected(chosen: Iterable[Pick], timings: Iterable[Timing], predictor: Predictor) -> list[Saving]:
    """What the fit expects a sweep to save of what was picked, where it tells, beside what one saved."""
    best, found = best_us(timings), []
    for pick in chosen:
        us = saving_us(predictor, pick.problem, pick.config)
        if us is not None:
            least_us = best[pick.problem]
            now_us = least_us * (1 + pick.loss)
            found.append(Saving(pick.problem, us / now_us, pick.loss * least_us / now_us))
    return found


def _by_problem(timings: Iterable[Timing]) -> dict[Problem, dict[Config, float]]:
    timed: dict[Problem, dict[Config, float]] = defaultdict(dict)
    for timing in timings:
        timed[timing.problem][timing.config] = timing.us
    return timed


def _size(layer: Layer) -> tuple[int, int]:
    return layer.n, layer.k
