"""What tuning a problem is expected to save, given how far off a fit was where it had not seen the layer."""

from __future__ import annotations

from math import hypot, log
from statistics import NormalDist

from autotune.prediction.predictor import Prediction, Predictor
from autotune.values.config import Config
from autotune.values.layer import Problem

_NORMAL = NormalDist()
_DEVIATIONS = 2 * _NORMAL.inv_cdf(0.9)
"""From what a tenth of all times fall below to what a tenth exceed."""


def saving_us(predictor: Predictor, problem: Problem, running: Config | None) -> float | None:
    """What another config than the `running` one is expected to save at each call; None where no fit tells.

    As `running`, None is what the predictor chooses. Times are taken as log-normal around what is predicted,
    so a config saves something on average even where it is not predicted to be faster: a sweep keeps the
    faster one. What counts is the config of which that is the most.
    """
    ranked = predictor.ranked(problem)
    if not ranked:
        return None
    now = ranked[0] if running is None else predictor.prediction(problem, running)
    if now is None:
        return None
    return max((_excess_us(now, other) for other in ranked if other.config != now.config), default=0.0)


def _excess_us(now: Prediction, other: Prediction) -> float:
    """The mean of what the one exceeds the other by, where it does.

    That is the value of the option to exchange them (Margrabe, "The value of an option to exchange one asset
    for another", 1978).
    """
    deviation = hypot(_deviation(now), _deviation(other))
    if not deviation:
        return max(0.0, now.us - other.us)
    far = log(now.us / other.us) / deviation + deviation / 2
    return now.us * _NORMAL.cdf(far) - other.us * _NORMAL.cdf(far - deviation)


def _deviation(prediction: Prediction) -> float:
    return log(prediction.high_us / prediction.low_us) / _DEVIATIONS
