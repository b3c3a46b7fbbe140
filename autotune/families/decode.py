"""Family `decode`: few tokens on sm_90, weights by rings in shared memory, launched ahead of its turn."""

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
    too_large,
)
from autotune.families.protocol import Launch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem

_ALLOWED = {
    "fragments": (2, 4),
    "warps_n": (1, 2),
    "warps_k": (4, 8, 16),
    "stages": (2, 3, 4),
    "ahead": (1, 2),
    "split_k": (1, 2),
    "chunks": (0, 1, 4),
    "persistent": (0, 1),
}
_MOST_TOKENS = 4  # of a launch; with more, tiles of tokens are faster
# Warps need more than 64 registers a lane, and a multiprocessor has room for this many of 128.
_MOST_WARPS = 16

# Of the default: fragments, warps_n, warps_k, stages, split_k, persistent. The best of them is 1.2 % slower
# than the best of a sweep of all presets on an H200, 8 % at most.
_SHAPES = (
    (2, 1, 16, 2, 1, 1),
    (2, 1, 16, 2, 2, 1),
    (2, 1, 8, 3, 1, 1),
    (2, 1, 8, 3, 2, 1),
    (4, 1, 8, 2, 1, 1),
    (2, 2, 8, 2, 1, 1),
    (2, 2, 8, 3, 2, 1),
    (2, 1, 4, 3, 1, 0),
    (2, 1, 4, 2, 2, 0),
)

# Least squares over 8,850 trials (those with ahead=1) of a sweep of all presets on an H200, 5 % off (root
# mean square, weighed by how near a config came to the best). Microseconds of
_CALL_US = 1.91  # a call
_CORES_US = 1.03  # one with blocks on all multiprocessors; on those without, the next call starts meanwhile
_X_US = 0.0229  # a KiB of x
_WAVE_US = 0.642  # each wave of blocks beyond the first
_SUMS_US = 0.0067  # sums of 16 rows of a warp and a tile, which meet
_SLICES_US = 0.198  # a tile's slices, which wait for each other
_SENT_US = 0.0024  # sums of 16 rows and a token on their way to the other slice
_UNIT_US = 0.196  # a warp for a unit of 128 columns, however few others there are
_TOKEN = 0.16  # the share more of it for each further token
_ROWS_US = 0.0208  # a multiprocessor for the 16 rows of a unit
_GROUP = 0.05  # the share more of it for each further group of a unit

_HEAD_BYTES = 128
# The winners of a sweep had this many bytes of rings on each multiprocessor.
_LEAST_RING_BYTES = 40000
_MOST_RING_BYTES = 150000


class DecodeGeometry(Geometry):
    """`groups` are of a unit, `slice_units` of a slice of k; `clusters` is one per tile, or of persistent
    blocks as many as give each multiprocessor one.
    """

    most_tokens = _MOST_TOKENS

    def __init__(self, config: Config, layer: Layer, device: Device) -> None:
        super().__init__(config, layer, device)
        (
            self.fragments,
            self.warps_n,
            self.warps_k,
            self.stages,
            self.ahead,
            self.split_k,
            _,
            self.persistent,
        ) = (value for _, value in config.values)
        self.warps = self.warps_n * self.warps_k
        self.rows = self.warps_n * self.fragments * 16
        self.tiles = ceil_div(ceil_div(layer.n, 64) * 64, self.rows)
        self.columns = 64 if ceil_div(layer.k, 64) % 2 else 128
        self.units = ceil_div(layer.k, 64) * 64 // self.columns
        self.slice_units = ceil_div(self.units, self.split_k)
        self.groups = self.columns // layer.group_size if layer.group_size in (32, 64) else 1
        most = max(1, device.cores // self.split_k)
        self.clusters = min(self.tiles, most) if self.persistent else self.tiles
        group_bytes = 160 if layer.zero_point else 128
        stage_bytes = self.columns // 64 * self.fragments * 512 + self.groups * group_bytes
        self.ring_bytes = self.warps * self.stages * stage_bytes

    def shared_bytes(self, m: int) -> int:
        tokens = min(m, _MOST_TOKENS)
        sums = 2 * self.warps_k * self.split_k * tokens * (self.rows // self.split_k + 4) * 4
        x = tokens * (self.slice_units * self.columns + 8) * 2
        return _HEAD_BYTES + self.ring_bytes + sums + x

    def launch(self, tokens: int) -> Launch:
        grid = (self.split_k, self.clusters, 1)
        return Launch(grid, self.warps * 32, self.shared_bytes(tokens), True, (self.ahead,))

    def defines(self) -> Defines:
        names = ("fragments", "warps_n", "warps_k", "stages", "chunks")
        tunables = tuple((name.upper(), self.config[name]) for name in names)
        return (*tunables, ("SPLIT", self.split_k), ("UNIT", self.columns))

    def misfit(self, m: int) -> str | None:
        if self.split_k * self.warps_k > self.units:
            return f"k has {self.units} units for {self.split_k} slices of {self.warps_k} warps"
        return too_large(self.shared_bytes(m), self.device)

    def pointless(self, m: int) -> str | None:  # noqa: ARG002
        blocks = self.tiles * self.split_k
        if blocks * 4 < self.device.cores * 3:
            return f"{blocks} blocks leave multiprocessors idle"
        units = ceil_div(self.tiles, self.clusters) * ceil_div(self.slice_units, self.warps_k)
        if self.stages > max(2, units):
            return f"a warp has fewer units than {self.stages} stages"
        if not self.persistent:
            return None if blocks >= 2 * self.device.cores else "a cluster has one tile anyway"
        if not _LEAST_RING_BYTES <= self.ring_bytes <= _MOST_RING_BYTES:
            return f"{self.ring_bytes} bytes of weights under way on a multiprocessor"
        return None

    def resident(self, m: int) -> int:
        """Blocks that stand on a multiprocessor at once."""
        fitting = SM90_SHARED_BYTES // (self.shared_bytes(m) + SM90_BLOCK_BYTES)
        return max(1, min(fitting, _MOST_WARPS // self.warps))

    def estimate(self, m: int) -> float:
        split_k, tokens, cores = self.split_k, min(m, _MOST_TOKENS), self.device.cores
        fragments = self.warps * self.fragments
        units = ceil_div(self.slice_units, self.warps_k) * self.columns / 128
        unit_us = _UNIT_US * (1 + _TOKEN * (tokens - 1))
        busy_us = fragments * _ROWS_US * (1 + _GROUP * (self.groups - 1))
        tile_us = fragments * _SUMS_US + (split_k - 1) * (_SLICES_US + _SENT_US * fragments * tokens)
        x_us = _X_US * tokens * self.slice_units * self.columns / 512
        read_us = BESIDE * self.layer.weight_bytes / speed(self.device).read_bytes

        def wave_us(blocks: int, share: float) -> float:
            started_us = 0.0 if self.persistent else _WAVE_US + blocks * x_us
            return started_us + overlapped(
                tile_us + units * overlapped(unit_us, blocks * busy_us), share * read_us
            )

        resident = 1 if self.persistent else self.resident(m)
        blocks_us = waves_us(self.tiles, split_k, resident, cores, wave_us)
        blocks_us += x_us if self.persistent else -_WAVE_US
        used = min(1.0, self.tiles * split_k / cores)
        return ceil_div(m, _MOST_TOKENS) * (_CALL_US + _CORES_US * used + blocks_us)


class DecodeFamily(CudaFamily):
    """Tunables: `fragments` of 16 rows of a warp; `warps_n` and `warps_k` of a block along n and k; `stages`
    of weights in the ring of a warp, of which `ahead` are asked for before x; `split_k` slices of k, the
    blocks of a cluster; `chunks` of x, each waited for on its own, 0: warps load what they need;
    `persistent` 1: a block per multiprocessor does several tiles, 0: there is a cluster per tile.
    """

    name = "decode"
    deterministic = True
    tunables = _ALLOWED
    source = "decode/decode.cu"
    kernel = "int4_decode"
    geometry = DecodeGeometry
    hopper = "clusters and programmatic launches"

    def reject_shape(self, config: Config) -> str | None:
        warps = config["warps_n"] * config["warps_k"]
        return f"a block would have {warps} warps, more than {_MOST_WARPS}" if warps > _MOST_WARPS else None

    def candidates(self, problem: Problem, device: Device) -> Iterator[Config]:  # noqa: ARG002
        if problem.m > _MOST_TOKENS:
            return
        chunks = {1: (0, 1), 2: (0,)}.get(problem.m, (0, 4))
        order = ("persistent", "split_k", "stages", "warps_k", "warps_n", "fragments")
        for *values, chunk, ahead in product(*map(_ALLOWED.__getitem__, order), chunks, _ALLOWED["ahead"]):
            persistent, split_k, stages, warps_k, warps_n, fragments = values
            if warps_n * warps_k <= _MOST_WARPS:
                yield self.config(fragments, warps_n, warps_k, stages, ahead, split_k, chunk, persistent)

    def defaults(self, problem: Problem, device: Device) -> Iterator[Config]:  # noqa: ARG002
        if problem.m <= _MOST_TOKENS:
            for *shape, split_k, persistent in _SHAPES:
                yield self.config(*shape, 1, split_k, 0, persistent)


FAMILY = DecodeFamily()
