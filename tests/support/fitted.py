"""Fits made by hand: what they predict is known without learning anything."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from store_samples import H200

from autotune.families import registry
from autotune.prediction.fit import Choices, FamilyFit, Fit, Probe
from autotune.prediction.forest import Forest
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import Layer, Problem

PROBLEM = Problem(Layer(n=9216, k=3072, group_size=128), 16)
"""No record of it ships."""


def constant(value: float) -> Forest:
    """Says the same of every row."""
    return Forest(value, np.empty(0, np.int64), np.empty(0), np.empty((0, 1), np.int64), np.empty((0, 2)))


def fit_of(
    factors: Mapping[str, float],
    choices: tuple[Config, ...],
    spread: tuple[float, float] = (0.95, 1.05),
    problem: Problem = PROBLEM,
    device: Device = H200,
) -> Fit:
    """The families' estimates times their factors; `choices` are those of the problem."""
    families = {}
    for name, factor in factors.items():
        some = registry.families()[name].space(problem, device)[0]
        probes = (Probe.of(problem, some, device),)
        families[name] = FamilyFit(tuple(some), probes, spread, constant(math.log(factor)))
    size = problem.layer.n, problem.layer.k
    return Fit(device.name, device.arch, 1, 1, families, Choices.of({problem.m: {size: choices}}))


def space() -> list[Config]:
    """PROBLEM's configs of the default's family, those first that are estimated to be the fastest."""
    family = registry.family_of(registry.default_config(PROBLEM, H200))
    found = family.space(PROBLEM, H200)
    return sorted(found, key=lambda config: family.estimate(config, PROBLEM, H200))


def estimate_us(config: Config) -> float:
    return registry.family_of(config).estimate(config, PROBLEM, H200)
