"""What a finer bucket learns from the powers of two around it, so that it races few configs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import log2

from autotune.config import Config
from autotune.device import Device
from autotune.kernels import registry
from autotune.layer import Problem
from autotune.record import Record

_BEST = 3
"""How many configs of each neighbour are tried."""
_TILE = "tile_m"
"""The tunable by which families say how many tokens a block has, which is to fit m."""


def worth_racing(
    problem: Problem, device: Device, neighbours: Sequence[Record], names: Collection[str] | None = None
) -> list[Config]:
    """The problem's default config, then what fits it of the configs that did best at its neighbours.

    Those are the winner of each and the next best by its evidence, with every value of `tile_m` that the
    problem's space has beside their other values; or, where it has none, the nearest config of their family.
    """
    space = registry.space(problem, device, names)
    chosen = {fitting for record in neighbours for best in _best(record) for fitting in _fitted(best, space)}
    default = registry.default_config(problem, device, names)
    return [default, *(config for config in space if config in chosen - {default})]


def _best(record: Record) -> list[Config]:
    evidence = record.evidence
    rivals = () if evidence is None else (*evidence.ties, *(name for name, _ in evidence.runners_up))
    return [record.config, *map(Config.parse, rivals)][:_BEST]


def _fitted(config: Config, space: Sequence[Config]) -> list[Config]:
    family = [each for each in space if each.family == config.family and tuple(each) == tuple(config)]
    same = [each for each in family if not _apart(each, config)]
    return same or sorted(family, key=lambda each: _distance(each, config))[:1]


def _apart(one: Config, other: Config) -> list[tuple[int, int]]:
    """The values of tunables that differ, but for those of the tile."""
    pairs = zip(one.values, other.values, strict=True)
    return [(a, b) for (name, a), (_, b) in pairs if a != b and name != _TILE]


def _distance(one: Config, other: Config) -> tuple[int, float]:
    """How many tunables differ, and by how many octaves in all; a value may be 0."""
    apart = _apart(one, other)
    return len(apart), sum(abs(log2((a + 1) / (b + 1))) for a, b in apart)
