"""Which configs of a space need not be timed, because a fit predicts that others are faster."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import TYPE_CHECKING

from autotune.values.config import Config
from autotune.values.layer import Problem

if TYPE_CHECKING:
    from autotune.prediction.predictor import Predictor

_NEAR = 1.15
"""Times the best predicted time, up to which a config is near it."""
_SHARE = 0.4
"""Of all configs, as many of those near are worth timing."""
_FEWEST = 4


def far(predictor: Predictor, problem: Problem, configs: Iterable[Config]) -> dict[Config, str]:
    """The valid configs that are not worth timing, each with the reason in a few words.

    Worth it are the first of those that are predicted to be near the fastest, the fastest of each family if
    it is near, and at least four. What no fit corrects, or one too unsure to tell who is near, is worth it
    too.
    """
    known = [config for config in configs if predictor.spread(config) <= _NEAR]
    times = dict(zip(known, predictor.times_us([(problem, config) for config in known]), strict=True))
    ordered = sorted(known, key=lambda config: times[config])
    if not ordered:
        return {}
    best_us = times[ordered[0]]
    near = [config for config in ordered if times[config] <= _NEAR * best_us]
    first = {config.family: config for config in reversed(near)}
    worth = {*ordered[:_FEWEST], *near[: ceil(_SHARE * len(known))], *first.values()}
    return {
        config: f"not timed: {us:.2f} us predicted, {best_us:.2f} us for the fastest"
        for config, us in times.items()
        if config not in worth
    }
