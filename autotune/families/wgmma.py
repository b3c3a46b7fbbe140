"""Family `wgmma`: 5 to 512 tokens on sm_90 by wgmma, weights from registers, x by tensor copies."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from autotune.families.estimates import BESIDE, overlapped, speed, waves_us
from autotune.families.gemm import (
    SM90_BLOCK_BYTES,
    SM90_SHARED_BYTES,
    CudaFamily,
    Defines,
    Geometry,
    ceil_div,
    scaled_weights,
    too_large,
)
from autotune.families.protocol import Launch

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem

# On an H200 a launch of 128 tokens takes 0.36 of the time to dequantise for 256 and 0.25 of that for 512, so
# that two or four in a row are worth timing.
_TOKENS = range(5, 513)
"""Numbers of tokens for which the family has configs."""

_ALLOWED = {
    "tile_m": (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128),
    "fragments": (1, 2),
    "warpgroups_n": (1, 2, 3),
    "warpgroups_k": (1, 2, 3),
    "stages": (3, 4, 6),
    "split_k": (1, 2, 3, 4, 6, 8),
    "scale_sums": (0, 1),
}
_DEFINED_AS = {"warpgroups_n": "GROUPS_N", "warpgroups_k": "GROUPS_K", "split_k": "SPLIT"}
_LARGEST_TILE = _ALLOWED["tile_m"][-1]

# By the largest tile_m: fragments, warpgroups_n, warpgroups_k, and the blocks for which a multiprocessor's
# registers must suffice. In sweeps of the Llama-7B layers on an H200 more warpgroups, and x fetched by two
# blocks for each other, never won.
_SHAPES: dict[int, dict[tuple[int, ...], int]] = {
    8: {(2, 1, 1): 3, (1, 1, 2): 3, (1, 1, 3): 2, (1, 3, 1): 2, (1, 1, 1): 5},
    16: {(2, 1, 1): 3, (1, 1, 2): 3, (1, 1, 3): 2, (1, 3, 1): 2, (1, 1, 1): 5},
    32: {(1, 1, 2): 2, (1, 1, 3): 1, (1, 3, 1): 1, (1, 1, 1): 4},
    64: {(2, 1, 1): 2, (1, 1, 2): 2, (1, 1, 3): 1, (1, 3, 1): 1, (1, 1, 1): 3},
    128: {(1, 2, 1): 1, (1, 1, 2): 1, (1, 3, 1): 1},
}
_SHAPES_OF = {
    tile_m: next(shapes for largest, shapes in _SHAPES.items() if largest >= tile_m)
    for tile_m in _ALLOWED["tile_m"]
}

# Least squares over 6,467 trials of a sweep of all presets on an H200, 5 % off (root mean square, weighed by
# how near a config came to the best). Microseconds of
_CALL_US = 1.78  # a call
_WAVE_US = 0.765  # each wave of blocks
_SENT_US = 0.000094  # the sum of a row and token, where it goes to another block of the cluster
# A warpgroup alone takes as long for a unit of 128 columns as it keeps a multiprocessor busy:
_UNIT_US = 0.0192  # for the unit,
_ROWS_US = 0.0734  # for each 64 rows of it,
_TOKEN_US = 0.00157  # and for each of their tokens
_GROUP = 0.05  # the share more of it for each further group of a unit
_FETCH_US = 0.682  # a unit's way from memory; a ring has `stages` under way
_ASKED = 0.477  # of reading what rings ask for before x, and so delay it, the share that is lost

_APART_BYTES = 24 << 10


class WgmmaGeometry(Geometry):
    """`groups` are of a unit of 128 columns, and `resident` are the blocks that stand on a multiprocessor at
    once; `blocks` are those for which its registers must suffice, one less where that would spill.
    """

    def __init__(self, config: Config, layer: Layer, device: Device) -> None:
        super().__init__(config, layer, device)
        tile_m, fragments, along_n, along_k, stages, split_k, _ = (value for _, value in config.values)
        self.tile_m = self.most_tokens = tile_m
        self.fragments, self.along_k, self.stages, self.split_k = fragments, along_k, stages, split_k
        self.warpgroups = along_n * along_k
        self.rows = rows = along_n * fragments * 64
        self.tiles = ceil_div(ceil_div(layer.n, 64) * 64, rows)
        self.groups = {32: 4, 64: 2}.get(layer.group_size, 1)
        ring_bytes = rows // 16 * along_k * stages * (1024 + self.groups * 64)
        rings = stages * along_k * 2 * tile_m * 128 + ring_bytes
        own_rows = ceil_div(rows // 16, split_k) * 16
        sums = 0 if split_k == 1 else split_k * own_rows * tile_m * 4
        apart = rows * tile_m * 4 <= _APART_BYTES
        # The kernel rounds its base up to 1024 bytes, and has two barriers per stage and one more.
        self.shared_bytes = 1024 + (rings + sums if apart else max(rings, sums)) + stages * along_k * 16 + 16
        blocks = _SHAPES_OF[tile_m][fragments, along_n, along_k]
        self.blocks = max(1, blocks - 1) if (layer.dtype, layer.group_size) == ("bf16", 32) else blocks
        self.resident = min(SM90_SHARED_BYTES // (self.shared_bytes + SM90_BLOCK_BYTES), self.blocks)

    def launch(self, tokens: int) -> Launch:  # noqa: ARG002
        threads = self.warpgroups * 128 + 32
        return Launch((self.split_k, self.tiles, 1), threads, self.shared_bytes, True, box_rows=self.tile_m)

    def defines(self) -> Defines:
        tunables = ((_DEFINED_AS.get(name, name.upper()), value) for name, value in self.config.values)
        return (*tunables, ("BLOCKS", self.blocks))

    def misfit(self, m: int) -> str | None:  # noqa: ARG002
        if ceil_div(self.layer.k, 128) < self.split_k * self.along_k:
            return f"k={self.layer.k} has less than 128 columns for each slice's warpgroups"
        return too_large(self.shared_bytes, self.device)

    def estimate(self, m: int) -> float:
        tile_m, stages = self.tile_m, self.stages
        units = ceil_div(ceil_div(self.layer.k, 128), self.split_k * self.along_k)
        unit_us = _UNIT_US + self.fragments * (_ROWS_US + _TOKEN_US * tile_m)
        unit_us *= 1 + _GROUP * (self.groups - 1)
        sent_us = 0.0 if self.split_k == 1 else _SENT_US * self.rows * tile_m
        read_us = self.layer.weight_bytes / speed(self.device).read_bytes
        asked_us = _ASKED * read_us * min(1.0, stages / units)

        def wave_us(blocks: int, share: float) -> float:
            busy_us = overlapped(unit_us, _FETCH_US / stages, blocks * self.warpgroups * unit_us)
            read = overlapped(units * busy_us, share * BESIDE * read_us)
            return _WAVE_US + sent_us + share * asked_us + read

        blocks_us = waves_us(self.tiles, self.split_k, self.resident, self.device.cores, wave_us)
        return _CALL_US + ceil_div(m, tile_m) * blocks_us


class WgmmaFamily(CudaFamily):
    """Tunables: `tile_m` tokens of a launch, of which more tokens take several; `fragments` of 64 rows of a
    warpgroup; `warpgroups_n` of a block with rows of their own, `warpgroups_k` of these that share the
    columns; `stages` of the rings of x and of weights; `split_k` slices of k, the blocks of a cluster;
    `scale_sums` 1: scales multiply the sums of a group, 0: the weights.
    """

    name = "wgmma"
    deterministic = True
    tunables = _ALLOWED
    source = "wgmma/wgmma.cu"
    kernel = "int4_wgmma"
    geometry = WgmmaGeometry
    hopper = "wgmma"
    arch_suffix = "a"
    # Where a config of the family was the best of a sweep, its estimate was at most 1.17 times the lowest, in
    # 404 problems of all presets on an H200.
    worth_timing = 1.25

    def reject_shape(self, config: Config) -> str | None:
        tile_m = config["tile_m"]
        shapes = _SHAPES_OF[tile_m]
        if tuple(config[name] for name in ("fragments", "warpgroups_n", "warpgroups_k")) not in shapes:
            known = ", ".join(map(str, shapes))
            return f"fragments, warpgroups_n and warpgroups_k are one of {known} at tile_m={tile_m}"
        if config["scale_sums"] and tile_m > 32:
            return "the sums of a group besides those of all groups do not fit the registers beyond tile_m=32"
        return None

    def candidates(self, problem: Problem, device: Device) -> Iterable[Config]:  # noqa: ARG002
        return self._configs(problem, _worth_scaling(problem))

    def defaults(self, problem: Problem, device: Device) -> Iterable[Config]:  # noqa: ARG002
        return self._configs(problem, _worth_scaling(problem)[:1])

    def order(self, config: Config, layer: Layer, device: Device) -> Hashable | None:  # noqa: ARG002
        """That of `prefill` too: products of 16 columns one after the other, in slices of whole units."""
        alone = config["warpgroups_k"] == 1 and not config["scale_sums"]
        return scaled_weights(layer, config["split_k"], 128) if alone else None

    def ordered(self, problem: Problem, device: Device) -> Iterator[Config]:
        """Also for numbers of tokens that are not worth timing."""
        found = self._fitting(self._all(problem, (0,)), problem, device)
        return (each.config for each in found if each.config["warpgroups_k"] == 1)

    def _configs(self, problem: Problem, scalings: Iterable[int]) -> Iterable[Config]:
        if problem.m not in _TOKENS:
            return ()  # fewer tokens waste most of a product, more dequantise the weights too often
        return self._all(problem, scalings)

    def _all(self, problem: Problem, scalings: Iterable[int]) -> Iterator[Config]:
        tile_m = _tile_m(problem.m)
        each = product(_ALLOWED["split_k"], _ALLOWED["stages"], _SHAPES_OF[tile_m], scalings)
        for split_k, stages, shape, scaling in each:
            yield self.config(tile_m, *shape, stages, split_k, scaling)


def _tile_m(m: int) -> int:
    """The smallest tile that holds m tokens, or an equal share of them where the largest does not."""
    share = ceil_div(m, ceil_div(m, _LARGEST_TILE))
    return next(tile for tile in _ALLOWED["tile_m"] if tile >= share)


def _worth_scaling(problem: Problem) -> tuple[int, ...]:
    """Values of scale_sums worth timing, the likelier first."""
    if problem.m > 32:
        return (0,)
    return (1, 0) if problem.layer.group_size in (32, 64) else (1,)


FAMILY = WgmmaFamily()
