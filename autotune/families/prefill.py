"""Family `prefill`: many tokens on sm_90 by wgmma, one launch for all tiles of up to 256 tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.families.estimates import clusters_at_once
from autotune.families.gemm import (
    SM90_BLOCK_BYTES,
    SM90_SHARED_BYTES,
    CudaFamily,
    Defines,
    Geometry,
    ceil_div,
    scaled_weights,
)
from autotune.families.protocol import Launch
from autotune.families.workspace import COUNTER_BYTES

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem

_FEWEST_TOKENS = 65  # of fewer, weights are what a call waits for

_SHAPES = {(2, 1): 256, (2, 2): 128, (3, 1): 192}
"""By warpgroups and fragments the most tokens of a tile whose sums fit the registers."""
_WAYS = {
    **{(2, 1, 0): 192, (1, 1, 0): 192, (2, 1, 1): 176, (1, 1, 1): 176},
    **{(1, 2, 0): 192, (1, 3, 0): 160, (1, 4, 0): 160},
}
"""How blocks share work: cluster, split_k and stream_k; and the most tokens that a tile of three warpgroups,
whose threads have the fewest registers, may have then."""
_TILES = ((2, 1, 256), (2, 1, 128), (2, 2, 128), (3, 1, 192))
"""Worth timing: warpgroups, fragments and the most tokens of a tile."""
_FEWER = 2
"""Tiles of fewer tokens than the most by this factor are not worth timing."""
_NEAR = 1.03
"""Times the least time of all waves, up to which tiles are worth timing."""
_MOST_STAGES = 8
_SHARE = {128: 2}
"""Units of 64 columns that belong together, by group size; else one."""

# What a call takes, in microseconds: itself, and clusters that share x; a block for a unit of 64 columns, for
# each 64 rows of it, and for each of their tokens; for the results of 64 rows and a token; for sums that go
# to the other blocks of a cluster; for those of a tile that is shared, to and from memory, and for each block
# beyond the second that has a share. When all multiprocessors multiply, the clock falls, with clusters that
# share x a little less. Least squares over 1,375 trials of a sweep of the layers of Llama-7B and Llama-3-8B
# on an H200, 3.5 % off (root mean square), but for _CLUSTER_US, _SHARED_US and _COOLER: these were chosen
# from a few values by what the choices then lose in 1,210 problems of later sweeps, 0.5 %. Where each unit
# has groups of its own, their scales take time, and more where a block has 128 rows and its products are too
# short to hide it (some 470 trials each in groups of 64 and 32).
_CALL_US = 1.87
_CLUSTER_US = 0.6
_UNIT_US = 0.049
_ROWS_US = 0.0315
_TOKEN_US = 0.000915
_LEAST_TOKENS = 100  # fewer take as long
_GROUP_US = {64: 0.015, 32: 0.06}
_BARE_US = 0.0011
_ENOUGH_TOKENS = 192
_RESULT_US = 0.0035
_SPLIT_US = 1.12
_SENT_US = 0.016
_SHARED_US = 7.0
_PASSED_US = 0.0086
_MORE_PASSED_US = 0.0020
_HOT = 0.31
_COOLER = 0.9


class PrefillGeometry(Geometry):
    """`row_blocks` of 64 rows are a block's; `shares` are the parts of k that a tile can be shared out by."""

    def __init__(self, config: Config, layer: Layer, device: Device) -> None:
        super().__init__(config, layer, device)
        tile_m, warpgroups, fragments, cluster, split_k, stream_k = (value for _, value in config.values)
        self.tile_m, self.cluster, self.split_k, self.stream_k = tile_m, cluster, split_k, stream_k
        self.threads = warpgroups * 128 + 128
        self.row_blocks = warpgroups * fragments
        self.of_cluster = cluster * split_k
        self.shares = ceil_div(ceil_div(layer.k, 64), _SHARE.get(layer.group_size, 1))
        stage_bytes = tile_m * 128 + self.row_blocks * 2048
        # As many stages as fit beside the results, for which each warpgroup has two buffers of 4096 bytes.
        # The kernel rounds its base up to 1024 bytes, and has two barriers per stage and two more.
        beside = 1024 + warpgroups * 8192 + 16 * (_MOST_STAGES + 1)
        self.stages = min(_MOST_STAGES, (SM90_SHARED_BYTES - SM90_BLOCK_BYTES - beside) // stage_bytes)
        sums = device.cores * self.row_blocks * 64 * tile_m * 4
        self._workspace_bytes = COUNTER_BYTES + sums if stream_k else 0
        self.shared_bytes = 1024 + self.stages * (stage_bytes + 16) + warpgroups * 8192 + 16

    def tiles(self, m: int) -> int:
        """Of all blocks of a cluster that share x."""
        rows = ceil_div(ceil_div(self.layer.n, 64), self.row_blocks * self.cluster)
        return rows * ceil_div(m, self.tile_m)

    def launch(self, tokens: int) -> Launch:
        """As many clusters as run at once; with split_k as many as there are tiles."""
        tiles, most = self.tiles(tokens), self.device.cores // self.cluster
        clusters = tiles if self.split_k > 1 else most if self.stream_k else min(most, tiles)
        grid = (clusters * self.of_cluster, 1, 1)
        box_rows = self.tile_m // self.cluster
        return Launch(grid, self.threads, self.shared_bytes, True, box_rows=box_rows)

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        """For the sums of one tile of each block."""
        return self._workspace_bytes

    def defines(self) -> Defines:
        return (*((name.upper(), value) for name, value in self.config.values), ("STAGES", self.stages))

    def misfit(self, m: int) -> str | None:  # noqa: ARG002
        if self.shares < self.split_k:
            return f"k={self.layer.k} has fewer groups than {self.split_k} slices"
        return None

    def estimate(self, m: int) -> float:
        tiles, row_blocks, split_k, tile_m = self.tiles(m), self.row_blocks, self.split_k, self.tile_m
        workers = clusters_at_once(self.of_cluster, 1, self.device.cores)
        tile_us = self.layer.k / 64 / split_k * _unit_us(self.layer, row_blocks, tile_m)
        waves = ceil_div(tiles, workers)
        multiplied_us = tiles / workers * tile_us
        if self.stream_k:
            others = max(0, ceil_div(workers, tiles) - 2)
            passed_us = row_blocks * tile_m * (_PASSED_US + others * _MORE_PASSED_US)
            shared_us = multiplied_us + _SHARED_US + passed_us
        else:
            sent_us = 0.0 if split_k == 1 else _SPLIT_US + _SENT_US * row_blocks * tile_m * (1 - 1 / split_k)
            shared_us = waves * (tile_us + sent_us)
        call_us, hot = (_CALL_US + _CLUSTER_US, _HOT * _COOLER) if self.cluster > 1 else (_CALL_US, _HOT)
        all_us = call_us + shared_us + waves * _RESULT_US * row_blocks * tile_m / split_k
        return all_us * (1 + hot * max(0.0, multiplied_us / all_us - 0.5))


class PrefillFamily(CudaFamily):
    """Tunables: `tile_m` tokens of a block's tile; `warpgroups` that multiply, with `fragments` of 64 rows
    each; `cluster` blocks that fetch x for each other; `split_k` slices of k, the blocks of a cluster;
    `stream_k` 1: the tiles that would be left for a last wave are shared by all.
    """

    name = "prefill"
    deterministic = True
    tunables = dict.fromkeys(("tile_m", "warpgroups", "fragments", "cluster", "split_k", "stream_k"), ())
    source = "prefill/prefill.cu"
    kernel = "int4_prefill"
    geometry = PrefillGeometry
    scratch = 2
    most_parts = 3
    hopper = "wgmma"
    arch_suffix = "a"
    worth_timing = 1.15

    def reject_shape(self, config: Config) -> str | None:
        tile_m, warpgroups, fragments, cluster, split_k, stream_k = (value for _, value in config.values)
        shape, way = (warpgroups, fragments), (cluster, split_k, stream_k)
        if shape not in _SHAPES:
            return f"warpgroups and fragments are one of {', '.join(map(str, _SHAPES))}"
        if way not in _WAYS:
            return f"cluster, split_k and stream_k are one of {', '.join(map(str, _WAYS))}"
        most = _most_tokens(shape, way)
        if tile_m % 16 or not 16 <= tile_m <= most:
            return f"tile_m={tile_m} is not a multiple of 16 up to {most}"
        return None

    def order(self, config: Config, layer: Layer, device: Device) -> Hashable | None:  # noqa: ARG002
        """That of `wgmma` too; where tiles are shared, their number decides who adds what."""
        columns = 64 * _SHARE.get(layer.group_size, 1)
        return None if config["stream_k"] else scaled_weights(layer, config["split_k"], columns)

    def ordered(self, problem: Problem, device: Device) -> Iterator[Config]:
        return (config for config in self.valid(problem, device) if not config["stream_k"])

    def candidates(self, problem: Problem, device: Device) -> Iterator[Config]:
        if problem.m < _FEWEST_TOKENS:
            return
        for way in _WAYS:
            workers = clusters_at_once(way[0] * way[1], 1, device.cores)
            for tile in dict.fromkeys(_tiles(problem, workers, way)):
                config = self.config(*tile, *way)
                if way[-1] == 0 or _shares_any(PrefillGeometry(config, problem.layer, device), problem.m):
                    yield config


def _most_tokens(shape: tuple[int, int], way: tuple[int, int, int]) -> int:
    """Of a tile of the shape, by how blocks share the work."""
    return _WAYS[way] if shape == (3, 1) else _SHAPES[shape]


def _unit_us(layer: Layer, row_blocks: int, tile_m: int) -> float:
    """What a unit of 64 columns takes a block."""
    group_us = _GROUP_US.get(layer.group_size, 0.0)
    bare_us = _BARE_US * max(0, _ENOUGH_TOKENS - tile_m) if group_us and row_blocks == 2 else 0.0
    rows_us = row_blocks * (_ROWS_US + _TOKEN_US * max(tile_m, _LEAST_TOKENS))
    return _UNIT_US + rows_us + group_us + bare_us


def _tiles(problem: Problem, workers: int, way: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    """Tokens, warpgroups and fragments of tiles that are worth timing: of each shape the fewest tiles that
    hold all tokens, and where each worker takes whole tiles, those whose waves take the least time or nearly.
    """
    m, layer = problem.m, problem.layer
    for warpgroups, fragments, worth in _TILES:
        most, row_blocks = min(worth, _most_tokens((warpgroups, fragments), way)), warpgroups * fragments
        fewest = ceil_div(m, most)
        yield _fitting(m, fewest), warpgroups, fragments
        if way[-1]:
            continue
        rows = ceil_div(ceil_div(layer.n, 64), row_blocks * way[0])
        counts = range(fewest, max(fewest, _FEWER * m // most) + 1)
        waves_us = {
            tile_m: ceil_div(rows * ceil_div(m, tile_m), workers) * _unit_us(layer, row_blocks, tile_m)
            for tile_m in dict.fromkeys(_fitting(m, count) for count in counts)
        }
        most_us = _NEAR * min(waves_us.values())
        yield from ((tile_m, warpgroups, fragments) for tile_m, us in waves_us.items() if us <= most_us)


def _fitting(m: int, tiles: int) -> int:
    """The smallest tile of which so many hold m tokens."""
    return ceil_div(ceil_div(m, tiles), 16) * 16


def _shares_any(geometry: PrefillGeometry, m: int) -> bool:
    """Whether stream_k makes a difference: some tile is shared."""
    return geometry.tiles(m) % (geometry.device.cores // geometry.cluster) != 0


FAMILY = PrefillFamily()
