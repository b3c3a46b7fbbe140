"""Few configs of which one is good for each problem."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.values.config import Config
from autotune.values.layer import Problem

MOST = 24
_NONE = 0.3
"""The loss of a problem that none of them suits."""
_WORTH = 0.0003
"""The mean loss that one more has to save."""


def shortlist(ratios: Mapping[Problem, Mapping[Config, float]]) -> tuple[Config, ...]:
    """Configs whose best is near the best of each problem, chosen greedily, the most useful first.

    `ratios` are times over the best time of the problem. Each next config is the one that saves the most of
    what the problems lose by those before it, as of Nemhauser, Wolsey and Fisher, "An analysis of
    approximations for maximizing submodular set functions" (1978).
    """
    losses = dict.fromkeys(ratios, _NONE)
    left = sorted({config for timed in ratios.values() for config in timed})
    chosen: list[Config] = []

    def saved(config: Config) -> float:
        return sum(
            max(0.0, losses[problem] - max(0.0, timed[config] - 1))
            for problem, timed in ratios.items()
            if config in timed
        )

    while left and len(chosen) < MOST:
        best = max(left, key=saved)
        if saved(best) < _WORTH * len(ratios):
            break
        chosen.append(best)
        left.remove(best)
        for problem, timed in ratios.items():
            losses[problem] = min(losses[problem], max(0.0, timed.get(best, 2.0) - 1))
    return tuple(chosen)
