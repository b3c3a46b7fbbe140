"""What tuning is expected to save, against draws of the times that it assumes."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from fitted import PROBLEM, estimate_us, fit_of, space
from store_samples import H200

from autotune.families import registry
from autotune.prediction.predictor import Predictor
from autotune.prediction.saving import saving_us
from autotune.values.config import Config
from autotune.values.layer import Problem

FAST, *_, SLOW = space()


def predictor(*choices: Config, spread: tuple[float, float] = (0.95, 1.05)) -> Predictor:
    return Predictor(fit_of({FAST.family: 1.0}, choices, spread), H200)


def drawn_us(running: Config, other: Config, spread: tuple[float, float]) -> float:
    """The mean of what the other saves where it is faster; a tenth of all times is above the spread."""
    deviation = math.log(spread[1] / spread[0]) / 2 / NormalDist().inv_cdf(0.9)
    random = np.random.default_rng(3)
    now, then = (
        estimate_us(config) * np.exp(deviation * random.standard_normal(400_000) - deviation**2 / 2)
        for config in (running, other)
    )
    return float(np.maximum(now - then, 0).mean())


@pytest.mark.parametrize("spread", [(0.9, 1.1), (0.97, 1.02), (0.5, 1.5)])
@pytest.mark.parametrize("running", [FAST, SLOW])
def test_it_is_the_mean_of_what_the_other_config_saves(spread: tuple[float, float], running: Config) -> None:
    other = SLOW if running is FAST else FAST
    found = saving_us(predictor(FAST, SLOW, spread=spread), PROBLEM, running)
    assert found == pytest.approx(drawn_us(running, other, spread), rel=0.03, abs=1e-3)


def test_it_is_more_the_slower_what_runs_and_the_less_sure_the_fit() -> None:
    chosen = saving_us(predictor(FAST, SLOW), PROBLEM, None)
    assert chosen == saving_us(predictor(FAST, SLOW), PROBLEM, FAST)
    slow, unsure = (
        saving_us(predictor(FAST, SLOW, spread=s), PROBLEM, SLOW) for s in ((0.95, 1.05), (0.5, 1.5))
    )
    assert chosen is not None
    assert slow is not None
    assert unsure is not None
    assert chosen < estimate_us(SLOW) - estimate_us(FAST) <= slow < unsure


def test_a_fit_that_is_sure_expects_the_difference_alone() -> None:
    sure = predictor(FAST, SLOW, spread=(1.0, 1.0))
    assert saving_us(sure, PROBLEM, None) == 0.0
    assert saving_us(sure, PROBLEM, SLOW) == pytest.approx(estimate_us(SLOW) - estimate_us(FAST))


def test_where_no_fit_tells_nothing_is_expected() -> None:
    assert saving_us(Predictor(None, H200), PROBLEM, None) is None
    assert saving_us(predictor(FAST), Problem(PROBLEM.layer, 64), None) is None
    defaults = (each.default(PROBLEM, H200) for each in registry.families_of(H200))
    foreign = next(config for config in defaults if config is not None and config.family != FAST.family)
    assert saving_us(predictor(FAST), PROBLEM, foreign) is None
