"""Family `decode`: few tokens on sm_90, weights by rings in shared memory, launched ahead of its turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune import _C
from autotune.families.estimates import BESIDE, overlapped, quickest, speed, waves_us
from autotune.families.gemm import (
    SM90_BLOCK_BYTES,
    SM90_SHARED_BYTES,
    ceil_div,
    current_stream,
    layer_defines,
    parts,
    pointer,
    reject_layer,
)
from autotune.families.protocol import Launch
from autotune.jit.sources import source_hash
from autotune.jit.unit import Unit
from autotune.values.config import Config

if TYPE_CHECKING:
    import torch

    from autotune.layouts import PackedWeight
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
_TUNABLES = tuple(_ALLOWED)
_SOURCE = "decode/decode.cu"
_MOST_TOKENS = 4  # of a launch; beyond, wgmma is faster
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


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Launch geometry of a config for a layer; mirrors the constants of csrc/cuda/decode/decode.cu."""

    config: Config
    layer: Layer
    cores: int

    @property
    def warps(self) -> int:
        return self.config["warps_n"] * self.config["warps_k"]

    @property
    def rows(self) -> int:
        return self.config["warps_n"] * self.config["fragments"] * 16

    @property
    def tiles(self) -> int:
        return ceil_div(ceil_div(self.layer.n, 64) * 64, self.rows)

    @property
    def clusters(self) -> int:
        """One per tile, or of persistent blocks as many as give each multiprocessor one."""
        most = max(1, self.cores // self.config["split_k"])
        return min(self.tiles, most) if self.config["persistent"] else self.tiles

    @property
    def tiles_of_cluster(self) -> int:
        """Most tiles that one cluster has."""
        return ceil_div(self.tiles, self.clusters)

    @property
    def units(self) -> int:
        return ceil_div(self.layer.k, 64) * 64 // _unit_columns(self.layer)

    @property
    def slice_units(self) -> int:
        return ceil_div(self.units, self.config["split_k"])

    @property
    def groups(self) -> int:
        """Of a unit."""
        group_size = self.layer.group_size
        return _unit_columns(self.layer) // group_size if group_size in (32, 64) else 1

    @property
    def ring_bytes(self) -> int:
        columns = _unit_columns(self.layer)
        group_bytes = 160 if self.layer.zero_point else 128
        words = columns // 64 * self.config["fragments"] * 512
        return self.warps * self.config["stages"] * (words + self.groups * group_bytes)

    def shared_bytes(self, m: int) -> int:
        tokens = min(m, _MOST_TOKENS)
        own_rows = self.rows // self.config["split_k"]
        slots = self.config["warps_k"] * self.config["split_k"]
        sums = 2 * slots * tokens * (own_rows + 4) * 4
        x = tokens * (self.slice_units * _unit_columns(self.layer) + 8) * 2
        return _HEAD_BYTES + self.ring_bytes + sums + x

    def resident(self, m: int) -> int:
        """Blocks that stand on a multiprocessor at once."""
        fitting = SM90_SHARED_BYTES // (self.shared_bytes(m) + SM90_BLOCK_BYTES)
        return max(1, min(fitting, _MOST_WARPS // self.warps))


class _DecodePlan:
    """A loaded kernel and its launch geometry for one layer."""

    def __init__(self, config: Config, layer: Layer, device: Device, cubin: bytes) -> None:
        self._function = _C.CudaFunction(cubin, "int4_decode", device.index)
        geometry = _Geometry(config, layer, device.cores)
        self._launches = [_launch(geometry, rows) for rows in range(_MOST_TOKENS + 1)]
        self._layer = layer
        self._device = device

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return 0

    def run(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor | None,  # noqa: ARG002
    ) -> None:
        layer = self._layer
        stream = current_stream(self._device)
        operands = (weight.qweight.data_ptr(), weight.scales.data_ptr(), pointer(weight.zeros), pointer(bias))
        for start, rows in parts(x.shape[0], _MOST_TOKENS):
            row_bytes = start * x.element_size()
            launch = self._launches[rows]
            self._function.launch(
                launch.grid,
                launch.threads,
                launch.shared_bytes,
                stream,
                (
                    x.data_ptr() + row_bytes * layer.k,
                    *operands,
                    out.data_ptr() + row_bytes * layer.n,
                    rows,
                    layer.n,
                    layer.k,
                    *launch.arguments,
                ),
                launch.programmatic,
            )


class DecodeFamily:
    """Tunables: `fragments` of 16 rows of a warp; `warps_n` and `warps_k` of a block along n and k; `stages`
    of weights in the ring of a warp, of which `ahead` are asked for before x; `split_k` slices of k, the
    blocks of a cluster; `chunks` of x, each waited for on its own, 0: warps load what they need;
    `persistent` 1: a block per multiprocessor does several tiles, 0: there is a cluster per tile.
    """

    name = "decode"
    kind = "cuda"

    def source_hash(self) -> str:
        return source_hash(_SOURCE)

    def reject(self, config: Config, problem: Problem, device: Device) -> str | None:
        if tuple(config) != _TUNABLES:
            return f"its tunables are {', '.join(_TUNABLES)}"
        for name, values in _ALLOWED.items():
            if config[name] not in values:
                return f"{name}={config[name]} is not one of {', '.join(map(str, values))}"
        if device.arch != "sm_90":
            return f"it needs clusters and programmatic launches of sm_90, not {device.arch}"
        return (
            reject_layer(problem.layer)
            or _reject_shape(config)
            or _reject_size(_Geometry(config, problem.layer, device.cores), problem.m, device)
        )

    def space(self, problem: Problem, device: Device) -> list[Config]:
        if problem.m > _MOST_TOKENS:
            return []
        candidates = (
            _config(fragments, warps_n, warps_k, stages, ahead, split_k, chunks, persistent)
            for persistent in _ALLOWED["persistent"]
            for split_k in _ALLOWED["split_k"]
            for stages in _ALLOWED["stages"]
            for warps_k in _ALLOWED["warps_k"]
            for warps_n in _ALLOWED["warps_n"]
            for fragments in _ALLOWED["fragments"]
            for chunks in _worth_chunks(problem.m)
            for ahead in _ALLOWED["ahead"]
        )
        valid = [config for config in candidates if self.reject(config, problem, device) is None]
        return [config for config in valid if _prune(config, problem, device) is None] or valid

    def estimate(self, config: Config, problem: Problem, device: Device) -> float:
        return _estimate(_Geometry(config, problem.layer, device.cores), problem.m, device)

    def default(self, problem: Problem, device: Device) -> Config | None:
        if problem.m > _MOST_TOKENS:
            return None
        configs = (_config(*shape[:4], 1, shape[4], 0, shape[5]) for shape in _SHAPES)
        return quickest(self, configs, problem, device)

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit:
        names = ("fragments", "warps_n", "warps_k", "stages", "chunks")
        tunables = tuple((name.upper(), config[name]) for name in names)
        fixed = (("SPLIT", config["split_k"]), ("UNIT", _unit_columns(layer)))
        defines = (*tunables, *fixed, *layer_defines(layer))
        return Unit(_SOURCE, defines, device.arch)

    def launches(self, config: Config, problem: Problem, device: Device) -> tuple[Launch, ...]:
        geometry = _Geometry(config, problem.layer, device.cores)
        return tuple(_launch(geometry, rows) for _, rows in parts(problem.m, _MOST_TOKENS))

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> _DecodePlan:
        assert cubin is not None
        return _DecodePlan(config, layer, device, cubin)


def _launch(geometry: _Geometry, rows: int) -> Launch:
    """Of so many tokens."""
    config = geometry.config
    grid = (config["split_k"], geometry.clusters, 1)
    return Launch(grid, geometry.warps * 32, geometry.shared_bytes(rows), True, (config["ahead"],))


def _estimate(geometry: _Geometry, m: int, device: Device) -> float:
    config, layer, cores = geometry.config, geometry.layer, device.cores
    split_k, persistent, tokens = config["split_k"], config["persistent"], min(m, _MOST_TOKENS)
    fragments, columns = geometry.warps * config["fragments"], _unit_columns(layer)
    units = ceil_div(geometry.slice_units, config["warps_k"]) * columns / 128
    unit_us = _UNIT_US * (1 + _TOKEN * (tokens - 1))
    busy_us = fragments * _ROWS_US * (1 + _GROUP * (geometry.groups - 1))
    tile_us = fragments * _SUMS_US + (split_k - 1) * (_SLICES_US + _SENT_US * fragments * tokens)
    x_us = _X_US * tokens * geometry.slice_units * columns / 512
    read_us = BESIDE * layer.weight_bytes / speed(device).read_bytes

    def wave_us(blocks: int, share: float) -> float:
        started_us = 0.0 if persistent else _WAVE_US + blocks * x_us
        return started_us + overlapped(
            tile_us + units * overlapped(unit_us, blocks * busy_us), share * read_us
        )

    resident = 1 if persistent else geometry.resident(m)
    blocks_us = waves_us(geometry.tiles, split_k, resident, cores, wave_us)
    blocks_us += x_us if persistent else -_WAVE_US
    used = min(1.0, geometry.tiles * split_k / cores)
    return ceil_div(m, _MOST_TOKENS) * (_CALL_US + _CORES_US * used + blocks_us)


def _config(*values: int) -> Config:
    return Config("decode", tuple(zip(_TUNABLES, values, strict=True)))


def _unit_columns(layer: Layer) -> int:
    return 64 if ceil_div(layer.k, 64) % 2 else 128


def _worth_chunks(m: int) -> tuple[int, ...]:
    """Values of chunks worth timing."""
    return {1: (0, 1), 2: (0,)}.get(m, (0, 4))


def _reject_shape(config: Config) -> str | None:
    warps = config["warps_n"] * config["warps_k"]
    return f"a block would have {warps} warps, more than {_MOST_WARPS}" if warps > _MOST_WARPS else None


def _reject_size(geometry: _Geometry, m: int, device: Device) -> str | None:
    config = geometry.config
    if config["split_k"] * config["warps_k"] > geometry.units:
        return f"k has {geometry.units} units for {config['split_k']} slices of {config['warps_k']} warps"
    if geometry.shared_bytes(m) > device.shared_bytes:
        return f"{geometry.shared_bytes(m)} bytes of shared memory; a block has {device.shared_bytes}"
    return None


def _prune(config: Config, problem: Problem, device: Device) -> str | None:
    """Why a valid config is not worth timing, or None."""
    geometry = _Geometry(config, problem.layer, device.cores)
    blocks = geometry.tiles * config["split_k"]
    if blocks * 4 < device.cores * 3:
        return f"{blocks} blocks leave multiprocessors idle"
    units = geometry.tiles_of_cluster * ceil_div(geometry.slice_units, config["warps_k"])
    if config["stages"] > max(2, units):
        return f"a warp has fewer units than {config['stages']} stages"
    if not config["persistent"]:
        return None if blocks >= 2 * device.cores else "a cluster has one tile anyway"
    if not _LEAST_RING_BYTES <= geometry.ring_bytes <= _MOST_RING_BYTES:
        return f"{geometry.ring_bytes} bytes of weights under way on a multiprocessor"
    return None


FAMILY = DecodeFamily()
