"""Predicts times and chooses configs: the families' estimates, corrected by a fit where there is one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import nsmallest
from math import inf, log2

import numpy as np

from autotune.families import registry
from autotune.prediction.features import features
from autotune.prediction.fit import Choices, FamilyFit, Fit, Size
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import Layer, Problem

_NEAREST = 12
"""Of so many sizes the choices are looked at."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a config is expected to take, in microseconds; eight of ten lie from `low_us` to `high_us`."""

    config: Config
    us: float
    low_us: float
    high_us: float


class Predictor:
    """The times of configs on a device, by its fit and the families' estimates."""

    def __init__(self, fit: Fit | None, device: Device, names: Collection[str] | None = None) -> None:
        """Without a fit the estimates are all there is; it chooses from families of these `names`."""
        self.device = device
        known = {} if fit is None else fit.families
        self._fits: dict[str, FamilyFit] = {
            name: family
            for name, family in known.items()
            if name in registry.families() and all(probe.holds(device) for probe in family.probes)
        }
        self._choices = Choices((), (), {}) if fit is None else fit.choices
        self._usable = [
            self.corrects(config) and (names is None or config.family in names)
            for config in self._choices.configs
        ]

    @property
    def families(self) -> tuple[str, ...]:
        """The families whose estimates are corrected."""
        return tuple(self._fits)

    def corrects(self, config: Config) -> bool:
        """Whether a fit tells more of the config than its family's estimate does."""
        family = self._fits.get(config.family)
        return family is not None and family.tunables == tuple(config)

    def spread(self, config: Config) -> float:
        """The ratio of the times between which eight of ten lie; infinite where no fit corrects it."""
        if not self.corrects(config):
            return inf
        low, high = self._fits[config.family].spread
        return high / low

    def times_us(self, pairs: Sequence[tuple[Problem, Config]]) -> list[float]:
        """What each valid config takes for its problem; the plain estimate where the family has no fit."""
        # There are many pairs of few configs, each of which is asked once what holds for all of its pairs.
        distinct = {id(config): config for _, config in pairs}
        families = {key: registry.family_of(config) for key, config in distinct.items()}
        corrected = {key: self.corrects(config) for key, config in distinct.items()}
        device = self.device
        times = np.array(
            [families[id(config)].estimate(config, problem, device) for problem, config in pairs]
        )
        places: dict[str, list[int]] = defaultdict(list)
        for place, (_, config) in enumerate(pairs):
            if corrected[id(config)]:
                places[config.family].append(place)
        for name, own in places.items():
            problems, configs = zip(*(pairs[place] for place in own), strict=True)
            rows = features(problems, configs, times[own], self.device)
            times[own] *= np.exp(self._fits[name].forest.values(rows))
        return [float(each) for each in times]

    def prediction(self, problem: Problem, config: Config) -> Prediction | None:
        """What the valid config takes for the problem, None where its family has no fit."""
        if not self.corrects(config):
            return None
        return self._told(self.times_us([(problem, config)])[0], config)

    def best(self, layer: Layer, tokens: Iterable[int]) -> dict[int, Prediction]:
        """For each m the config that is expected to be the fastest; none where no fit tells.

        It is one of those that are the fastest for as many tokens at the nearest sizes that the fit has, or
        the default of their family.
        """
        ranked = self._ranked([Problem(layer, m) for m in tokens])
        chosen = ((problem.m, next(self._valid(problem, rank), None)) for problem, rank in ranked.items())
        return {m: self._told(*each) for m, each in chosen if each is not None}

    def ranked(self, problem: Problem) -> list[Prediction]:
        """All that `best` chooses from, the fastest first."""
        return [
            self._told(*each)
            for rank in self._ranked([problem]).values()
            for each in self._valid(problem, rank)
        ]

    def ordered(self, problem: Problem, configs: Iterable[Config]) -> list[Config]:
        """Valid configs of the problem, those first that are expected to be the fastest."""
        chosen = list(configs)
        times = self.times_us([(problem, config) for config in chosen])
        return [config for _, config in sorted(zip(times, chosen, strict=True), key=lambda each: each[0])]

    def _ranked(self, problems: Sequence[Problem]) -> dict[Problem, list[tuple[float, Config]]]:
        """The choices for each with their times, the fastest first, whether valid or not.

        The default config of the first one's family is among them, because its tile fits the problem's own
        size, which need not be true of what is the fastest at others.
        """
        found = self._timed(
            [(problem, config) for problem in problems for config in self._candidates(problem)]
        )
        defaults: list[tuple[Problem, Config]] = []
        for problem, times in found.items():
            _, best = min(times, key=_us)
            default = registry.family_of(best).default(problem, self.device)
            if default is not None and all(config != default for _, config in times):
                defaults.append((problem, default))
        for problem, times in self._timed(defaults).items():
            found[problem] += times
        return {problem: sorted(times, key=_us) for problem, times in found.items()}

    def _timed(self, pairs: Sequence[tuple[Problem, Config]]) -> dict[Problem, list[tuple[float, Config]]]:
        found: dict[Problem, list[tuple[float, Config]]] = defaultdict(list)
        for (problem, config), us in zip(pairs, self.times_us(pairs), strict=True):
            found[problem].append((us, config))
        return found

    def _candidates(self, problem: Problem) -> list[Config]:
        choices = self._choices
        by_size = choices.places.get(problem.m, {})
        near = _nearest((problem.layer.n, problem.layer.k), choices.sizes)
        places = {place for size in near for place in by_size.get(size, ())}
        return [choices.configs[place] for place in sorted(places) if self._usable[place]]

    def _valid(
        self, problem: Problem, ranked: Iterable[tuple[float, Config]]
    ) -> Iterator[tuple[float, Config]]:
        for us, config in ranked:
            if registry.family_of(config).reject(config, problem, self.device) is None:
                yield us, config

    def _told(self, us: float, config: Config) -> Prediction:
        low, high = self._fits[config.family].spread
        return Prediction(config, us, us * low, us * high)


def _us(timed: tuple[float, Config]) -> float:
    return timed[0]


@lru_cache(maxsize=256)
def _nearest(own: Size, sizes: tuple[Size, ...]) -> list[Size]:
    """The sizes that are nearest to the own, by octaves of n and of k."""

    def away(size: Size) -> float:
        return abs(log2(size[0] / own[0])) + abs(log2(size[1] / own[1]))

    return nsmallest(_NEAREST, sizes, key=away)
