"""What a finer bucket learns from the powers of two around it, so that it races few configs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import log2

from autotune.families import registry
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import Problem
from autotune.values.record import Record

_BEST = 3
"""How many configs of each neighbour are tried."""
_TILES = 2
"""With how many tiles each of them is tried."""
_TILE = "tile_m"
"""The tunable by which families say how many tokens a block has, which is to fit m."""


def worth_racing(
    problem: Problem, device: Device, neighbours: Sequence[Record], names: Collection[str] | None = None
) -> list[Config]:
    """The problem's default config, then what fits it of the configs that did best at its neighbours.

    Those are the winner of each and the next best by its evidence. What fits are the nearest configs of the
    family in the problem's space, whatever their `tile_m`, and of these the two that are estimated to be the
    fastest; of equal ones those whose tiles m fills best.
    """
    default, *others = space = registry.candidates(problem, device, names)
    chosen = {
        fitting
        for record in neighbours
        for best in _best(record)
        for fitting in _fitted(best, space, problem, device)
    }
    return [default, *(config for config in others if config in chosen)]


def _best(record: Record) -> list[Config]:
    evidence = record.evidence
    rivals = () if evidence is None else (*evidence.ties, *(name for name, _ in evidence.runners_up))
    return [record.config, *map(Config.parse, rivals)][:_BEST]


def _fitted(config: Config, space: Sequence[Config], problem: Problem, device: Device) -> list[Config]:
    def rank(each: Config) -> tuple[float, tuple[int, int]]:
        estimate_us = registry.family_of(each).estimate(each, problem, device)
        return estimate_us, _padded(each, problem.m)

    family = [each for each in space if each.family == config.family and tuple(each) == tuple(config)]
    least = min((_distance(each, config) for each in family), default=None)
    nearest = (each for each in family if _distance(each, config) == least)
    return sorted(nearest, key=rank)[:_TILES]


def _distance(one: Config, other: Config) -> tuple[int, float]:
    """How many tunables besides the tile differ, and by how many octaves in all; a value may be 0."""
    pairs = zip(one.values, other.values, strict=True)
    apart = [(a, b) for (name, a), (_, b) in pairs if a != b and name != _TILE]
    return len(apart), sum(abs(log2((a + 1) / (b + 1))) for a, b in apart)


def _padded(config: Config, m: int) -> tuple[int, int]:
    """The tokens that the tiles for m have room for, and how many tiles these are."""
    tile = config.as_dict().get(_TILE) or m
    tiles = -(-m // tile)
    return tiles * tile, tiles
