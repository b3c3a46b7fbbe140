"""What a forest is told of a config and its problem: numbers that every family has, and its tunables.

Tunables are known by name, whatever the family: `tile_m` is the tokens of a tile, those that end in `_k`
split k, and those that end in `_n`, `fragments` and `warpgroups` multiply the rows of n of a block. A family
that names its tunables otherwise is told of by the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autotune.prediction.forest import Floats
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import Problem

_TILE = "tile_m"
_ROWS = ("fragments", "warpgroups")


def features(
    problems: Sequence[Problem], configs: Sequence[Config], estimates_us: Floats, device: Device
) -> Floats:
    """A row for each problem with its config, all of one family; [row, column]."""
    layers = [problem.layer for problem in problems]
    m, n, k, weights = (
        np.array(values, np.float64)
        for values in (
            [problem.m for problem in problems],
            [layer.n for layer in layers],
            [layer.k for layer in layers],
            [layer.weight_bytes for layer in layers],
        )
    )
    names = list(configs[0])
    tunables = np.array([[value for _, value in config.values] for config in configs], np.float64)
    columns = _of_problem(m, n, k, weights, estimates_us, device.cores)
    columns += _of_tiles(m, n, k, names, tunables, device.cores)
    return np.column_stack((*columns, tunables))


def _of_problem(
    m: Floats, n: Floats, k: Floats, weights: Floats, estimates_us: Floats, cores: int
) -> list[Floats]:
    """Sizes, how the estimate compares with reading and multiplying, and waves of a large product's tiles."""
    tiles = [np.ceil(m / rows) * np.ceil(n / 128) / cores for rows in (128, 256)]
    return [
        *map(
            np.log2,
            (
                m,
                n,
                k,
                n / k,
                estimates_us,
                estimates_us / weights,
                estimates_us / (m * n * k),
                m * n * k / weights,
            ),
        ),
        weights / (n * k),
        m / 2 ** np.ceil(np.log2(m)),
        np.log2(tiles[0]),
        *map(_fill, tiles),
    ]


def _of_tiles(
    m: Floats, n: Floats, k: Floats, names: Sequence[str], tunables: Floats, cores: int
) -> list[Floats]:
    """How k and n are shared out, and how full the last share is."""

    def product(chosen: Sequence[bool]) -> Floats:
        return np.asarray(np.maximum(tunables[:, chosen], 1).prod(axis=1))

    slices = k / 64 / product([name.endswith("_k") for name in names])
    blocks = n / 16 / product([name.endswith("_n") or name in _ROWS for name in names])
    columns = [
        np.log2(slices),
        _fill(slices),
        _fill(slices / 2),
        np.log2(blocks),
        _fill(blocks / cores),
        _fill(blocks / 4 / cores),
    ]
    if _TILE in names:
        tile = np.maximum(tunables[:, names.index(_TILE)], 1)
        tiles = np.ceil(m / tile)
        waves = tiles * blocks / 4 / cores
        columns += [np.log2(tiles), m / (tiles * tile), np.log2(waves), _fill(waves)]
    return columns


def _fill(shares: Floats) -> Floats:
    """How much of the shares there is when each is a whole one, 1 when nothing is idle."""
    return np.asarray(shares / np.ceil(shares))
