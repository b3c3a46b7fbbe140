"""Configs that give a row the same bits, whatever the number of rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from autotune.families import registry
from autotune.values.errors import DeviceError
from autotune.values.layer import BUCKETS, COARSE, Problem

if TYPE_CHECKING:
    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Layer

_Found = dict[Hashable, tuple[float, "Config"]]


@dataclass(frozen=True)
class Invariant:
    """A config for each bucket, all of which add up a row in one order.

    `cost` is what they take over the default configs, by estimates, on average over the powers of two.
    """

    configs: dict[int, Config]
    cost: float


def invariant_configs(layer: Layer, device: Device, names: Collection[str] | None = None) -> Invariant:
    """Those of the order that costs the least; of its configs each bucket has that of the lowest estimate.

    Raises:
        DeviceError: no family of the device has configs of one order for every number of tokens.
    """
    found = {m: _by_order(Problem(layer, m), device, names) for m in COARSE}
    least = {m: _default_us(Problem(layer, m), device, names) for m in COARSE}
    costs = {
        order: mean(found[m][order][0] / least[m] for m in COARSE)
        for order in found[COARSE[0]]
        if all(order in of_bucket for of_bucket in found.values())
    }
    if not costs:
        raise DeviceError(f"no kernel family of {device.name} is batch-invariant for {layer}")
    chosen = min(costs, key=costs.__getitem__)
    found |= {m: _by_order(Problem(layer, m), device, names) for m in BUCKETS if m not in found}
    return Invariant({m: found[m][chosen][1] for m in BUCKETS}, costs[chosen])


def _by_order(problem: Problem, device: Device, names: Collection[str] | None) -> _Found:
    """Of each order the config of the lowest estimate, with that."""
    configs: dict[Hashable, list[tuple[float, Config]]] = defaultdict(list)
    for family in registry.families_of(device, names):
        for config in family.ordered(problem, device):
            order = family.order(config, problem.layer, device)
            configs[order].append((family.estimate(config, problem, device), config))
    return {order: min(of_order, key=lambda each: each[0]) for order, of_order in configs.items()}


def _default_us(problem: Problem, device: Device, names: Collection[str] | None) -> float:
    default = registry.default_config(problem, device, names)
    return registry.family_of(default).estimate(default, problem, device)
