"""Makes a fit from timed configs of a device model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from autotune.families import registry
from autotune.prediction.boosting import Growth, grow
from autotune.prediction.features import features
from autotune.prediction.fit import Choices, FamilyFit, Fit, Probe
from autotune.prediction.forest import Floats, Forest
from autotune.prediction.predictor import Predictor
from autotune.values.config import Config
from autotune.values.counts import counted
from autotune.values.device import Device
from autotune.values.errors import AutotuneError, DatabaseError
from autotune.values.layer import Layer, Problem

FEWEST = 200
"""Timed configs of a device model, below which there is nothing to learn from."""
_FEWEST_OF_FAMILY = 20
_PROBES = 4
_FOLDS = 3
_QUICK = Growth(trees=100, rate=0.12)
"""To see how far off a fit is. It is a little worse than the fit itself."""
_NEAR = 1.2
_FADES = 6
"""Configs up to so many times the best time count fully, slower ones with this power of the ratio less."""
_SPREAD = (0.1, 0.9)
_SIZES = 7
"""Of n and of k, from the least to the largest that was timed."""
_CHOICES = 4
"""How many configs of each problem are kept."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What a config was measured to take for a problem, in microseconds."""

    problem: Problem
    config: Config
    us: float


def make(timings: Sequence[Timing], device: Device, growth: Growth | None = None) -> Fit:
    """The fit of the timings, of which each problem and config has one.

    Raises:
        DatabaseError: there are too few.
    """
    growth = growth or Growth()
    valid = [each for each in timings if _is_valid(each, device)]
    check_enough(valid, device)
    best = best_us(valid)
    families: dict[str, list[Timing]] = defaultdict(list)
    for timing in valid:
        families[timing.config.family].append(timing)
    fits = {
        name: _of_family(own, best, device, growth)
        for name, own in sorted(families.items())
        if len(own) >= _FEWEST_OF_FAMILY and len({tuple(each.config) for each in own}) == 1
    }
    layers = {timing.problem.layer for timing in valid}
    fit = Fit(device.name, device.arch, len(valid), len(layers), fits, Choices((), (), {}))
    return replace(fit, choices=_choices(valid, Predictor(fit, device)))


def check_enough(timings: Sequence[Timing], device: Device) -> None:
    """Raise DatabaseError when there are too few timings to learn from."""
    if len(timings) < FEWEST:
        some = counted(len(timings), "timed config")
        raise DatabaseError(
            f"{device.name}: {some} of today's kernels; a fit needs {FEWEST}; run autotune sweep first"
        )


def best_us(timings: Iterable[Timing]) -> dict[Problem, float]:
    """The least time of each problem."""
    best: dict[Problem, float] = {}
    for timing in timings:
        best[timing.problem] = min(timing.us, best.get(timing.problem, timing.us))
    return best


def _is_valid(timing: Timing, device: Device) -> bool:
    own = registry.families()
    try:
        return timing.config.family in own and (
            own[timing.config.family].reject(timing.config, timing.problem, device) is None
        )
    except AutotuneError:
        return False


def _of_family(
    timings: Sequence[Timing], best: Mapping[Problem, float], device: Device, growth: Growth
) -> FamilyFit:
    problems, configs = [each.problem for each in timings], [each.config for each in timings]
    family = registry.family_of(configs[0])
    estimates = np.array([family.estimate(each.config, each.problem, device) for each in timings])
    rows = features(problems, configs, estimates, device)
    measured = np.array([each.us for each in timings])
    wanted = np.log(measured / estimates)
    ratios = measured / np.array([best[problem] for problem in problems])
    weights = np.minimum(1.0, (_NEAR / ratios) ** _FADES)
    unseen = _unseen(rows, wanted, weights, [problem.layer for problem in problems])
    low, high = (
        np.quantile(np.exp(wanted - unseen)[ratios <= _NEAR], _SPREAD) if (ratios <= _NEAR).any() else (1, 1)
    )
    places = np.linspace(0, len(timings) - 1, _PROBES).astype(int)
    probes = tuple(Probe.of(problems[place], configs[place], device) for place in places)
    forest = grow(rows, wanted, weights, growth)
    # As it reads from its file, so that a fit answers the same before and after.
    kept = Forest.of_row(forest.as_row())
    return FamilyFit(tuple(configs[0]), probes, (round(float(low), 4), round(float(high), 4)), kept)


def _unseen(rows: Floats, wanted: Floats, weights: Floats, layers: Sequence[Layer]) -> Floats:
    """What forests say that have not seen the layer of the row, or the row where there is one layer only."""
    keys: Sequence[object] = layers if len(set(layers)) >= _FOLDS else range(len(layers))
    numbers = {key: place % _FOLDS for place, key in enumerate(dict.fromkeys(keys))}
    folds = np.array([numbers[key] for key in keys])
    said = np.empty(len(wanted))
    for fold in range(_FOLDS):
        out = folds == fold
        said[out] = grow(rows[~out], wanted[~out], weights[~out], _QUICK).values(rows[out])
    return said


def _choices(timings: Sequence[Timing], predictor: Predictor) -> Choices:
    """By m and size the configs of the space that are expected to be the fastest."""
    tokens = sorted({timing.problem.m for timing in timings})
    layers = sorted({timing.problem.layer for timing in timings})
    sized = {(layer.n, layer.k): layer for layer in (*_between(layers), *layers)}
    return Choices.of(
        {m: {size: _fastest(Problem(layer, m), predictor) for size, layer in sized.items()} for m in tokens}
    )


def _between(layers: Sequence[Layer]) -> list[Layer]:
    """Layers of sizes between those of `layers`, which stand for all that nobody timed."""
    pattern = next((layer for layer in layers if layer.groups > 1), None)
    if pattern is None:
        return []
    sizes = (
        {int(512 * max(1, round(size / 512))) for size in np.geomspace(min(sides), max(sides), _SIZES)}
        for sides in ([layer.n for layer in layers], [layer.k for layer in layers])
    )
    return [replace(pattern, n=n, k=k) for n, k in product(*map(sorted, sizes))]


def _fastest(problem: Problem, predictor: Predictor) -> tuple[Config, ...]:
    return tuple(predictor.ordered(problem, registry.space(problem, predictor.device))[:_CHOICES])
