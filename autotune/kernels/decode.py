"""Family `decode`: few tokens on sm_90, weights by rings in shared memory, launched ahead of its turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune import _C
from autotune.config import Config
from autotune.kernels.cuda_gemm import (
    COMMON_SOURCES,
    SM90_BLOCK_BYTES,
    SM90_SHARED_BYTES,
    ceil_div,
    current_stream,
    layer_defines,
    pointer,
    reject_layer,
)
from autotune.kernels.family import Unit, hash_sources

if TYPE_CHECKING:
    import torch

    from autotune.device import Device
    from autotune.layer import Layer, Problem
    from autotune.packing import PackedWeight

_ALLOWED = {
    "tile_m": (4, 8),
    "fragments": (2, 4),
    "warps_n": (1, 2, 4),
    "warps_k": (2, 4, 8, 16),
    "stages": (2, 3, 4),
    "ahead": (1, 2, 3, 4),
    "split_k": (1, 2, 4),
    "chunks": (1, 4),
    "waves": (0, 1, 2),
}
_TUNABLES = tuple(_ALLOWED)
_WARPS = (4, 8, 16)
_MOST_TOKENS = 8  # beyond, wgmma is always faster
_DEFAULT_TOKENS = 4  # beyond, it mostly is

# Whether n gives every multiprocessor 64 rows, and up to this many bytes of x: fragments, warps_n, warps_k,
# stages, ahead, split_k. The rows had little mean regret over the Llama-7B layers in a sweep on an H200;
# where none fits, another family is faster.
_DEFAULTS = (
    (True, 16 << 10, 4, 1, 8, 4, 4, 1),
    (True, 64 << 10, 4, 1, 8, 3, 3, 1),
    (False, 22 << 10, 2, 1, 8, 3, 1, 1),
    (False, 44 << 10, 2, 1, 8, 3, 3, 1),
    (False, 64 << 10, 2, 2, 4, 3, 3, 2),
    (False, 256 << 10, 4, 1, 8, 2, 2, 2),
)

_HEAD_BYTES = 128
# Warps have 128 registers a lane and need more than 64, so a multiprocessor has room for this many.
_MOST_WARPS = 16
# The winners of a sweep had this many bytes of rings on each multiprocessor.
_LEAST_RING_BYTES = 40000
_MOST_RING_BYTES = 150000


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Launch geometry of a config for a layer; mirrors the constants at the head of csrc/cuda/decode.cu."""

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
        """One per tile, or as many as `waves` blocks on every multiprocessor make."""
        waves, split_k = self.config["waves"], self.config["split_k"]
        return min(self.tiles, max(1, self.cores * waves // split_k)) if waves else self.tiles

    @property
    def tiles_of_cluster(self) -> int:
        """Most tiles that one cluster has."""
        return ceil_div(self.tiles, self.clusters)

    @property
    def unit_columns(self) -> int:
        return 128 if self.layer.group_size == 128 else 64

    @property
    def units(self) -> int:
        return ceil_div(self.layer.k, 64) * 64 // self.unit_columns

    @property
    def slice_units(self) -> int:
        return ceil_div(self.units, self.config["split_k"])

    @property
    def ring_bytes(self) -> int:
        groups = 2 if self.layer.group_size == 32 else 1
        group_bytes = 160 if self.layer.zero_point else 128
        words = self.unit_columns // 64 * self.config["fragments"] * 512
        return self.warps * self.config["stages"] * (words + groups * group_bytes)

    def shared_bytes(self, m: int) -> int:
        tokens = min(m, self.config["tile_m"])
        own_rows = self.rows // self.config["split_k"]
        slots = self.config["warps_k"] * self.config["split_k"]
        sums = 2 * slots * tokens * (own_rows + 4) * 4
        return _HEAD_BYTES + self.ring_bytes + sums + tokens * (self.slice_units * self.unit_columns + 8) * 2


class _DecodePlan:
    """A loaded kernel and its launch geometry for one layer."""

    def __init__(self, config: Config, layer: Layer, device: Device, cubin: bytes) -> None:
        self._function = _C.CudaFunction(cubin, "int4_decode", device.index)
        geometry = _Geometry(config, layer, device.cores)
        # Read here, because a call has no time for it.
        self._grid = (config["split_k"], geometry.clusters, 1)
        self._threads, self._tile_m = geometry.warps * 32, config["tile_m"]
        self._shared_bytes = [geometry.shared_bytes(rows) for rows in range(self._tile_m + 1)]
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
        layer, tile_m = self._layer, self._tile_m
        stream = current_stream(self._device)
        operands = (weight.qweight.data_ptr(), weight.scales.data_ptr(), pointer(weight.zeros), pointer(bias))
        for start in range(0, x.shape[0], tile_m):
            rows = min(x.shape[0] - start, tile_m)
            row_bytes = start * x.element_size()
            self._function.launch(
                self._grid,
                self._threads,
                self._shared_bytes[rows],
                stream,
                (
                    x.data_ptr() + row_bytes * layer.k,
                    *operands,
                    out.data_ptr() + row_bytes * layer.n,
                    rows,
                    layer.n,
                    layer.k,
                ),
                True,
            )


class DecodeFamily:
    """Tunables: `tile_m` tokens of a launch (4 take half the work on sums of 8); `fragments` of 16 rows of a
    warp; `warps_n` and `warps_k` of a block along n and k; `stages` of weights in the ring of a warp, of
    which `ahead` are asked for before x; `split_k` slices of k, the blocks of a cluster; `chunks` of x, each
    waited for on its own; `waves` of blocks that live for several tiles, 0: a cluster per tile.
    """

    name = "decode"
    kind = "cuda"

    def source_hash(self) -> str:
        return hash_sources("decode.cu", *COMMON_SOURCES)

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
        tile_m = _tile_m(problem.m)
        chunks = 1 if problem.m <= 2 else 4
        candidates = (
            _config(tile_m, fragments, warps_n, warps_k, stages, ahead, split_k, chunks, waves)
            for waves in _ALLOWED["waves"]
            for split_k in _ALLOWED["split_k"]
            for stages in _ALLOWED["stages"]
            for warps_k in _ALLOWED["warps_k"]
            for warps_n in _ALLOWED["warps_n"]
            for fragments in _ALLOWED["fragments"]
            for ahead in _worth_ahead(problem.m, fragments, stages)
        )
        valid = [config for config in candidates if self.reject(config, problem, device) is None]
        return [config for config in valid if _prune(config, problem, device) is None] or valid

    def default(self, problem: Problem, device: Device) -> Config | None:
        if problem.m > _DEFAULT_TOKENS:
            return None
        chunks = 1 if problem.m <= 2 else 4
        x_bytes = problem.m * problem.layer.k * 2
        wide = problem.layer.n >= 64 * device.cores
        row = next((row for row in _DEFAULTS if row[0] == wide and x_bytes <= row[1]), None)
        if row is None:
            return None
        config = _config(_tile_m(problem.m), *row[2:], chunks, 1)
        return config if self.reject(config, problem, device) is None else None

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit:
        names = ("tile_m", "fragments", "warps_n", "warps_k", "stages", "ahead", "chunks")
        tunables = tuple((name.upper(), config[name]) for name in names)
        defines = (*tunables, ("SPLIT", config["split_k"]), *layer_defines(layer))
        return Unit("decode.cu", defines, device.arch, self.source_hash())

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> _DecodePlan:
        assert cubin is not None
        return _DecodePlan(config, layer, device, cubin)


def _config(*values: int) -> Config:
    return Config("decode", tuple(zip(_TUNABLES, values, strict=True)))


def _tile_m(m: int) -> int:
    return 4 if m <= 4 else 8


def _worth_ahead(m: int, fragments: int, stages: int) -> list[int]:
    """Values of ahead worth timing; less than all stages won with few tokens and few rows of a warp only."""
    return sorted({1, 2, stages}) if m <= 2 and fragments == 2 else [stages]


def _reject_shape(config: Config) -> str | None:
    warps = config["warps_n"] * config["warps_k"]
    if warps not in _WARPS:
        return f"a block would have {warps} warps; it can have {', '.join(map(str, _WARPS))}"
    if config["ahead"] > config["stages"]:
        return f"ahead={config['ahead']} is more than stages={config['stages']}"
    rows = config["warps_n"] * config["fragments"] * 16
    if rows // config["split_k"] < 16:
        return (
            f"each of {config['split_k']} blocks would add up {rows // config['split_k']} rows, fewer than 16"
        )
    return None


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
    waves, blocks = config["waves"], geometry.tiles * config["split_k"]
    if blocks * 4 < device.cores * 3:
        return f"{blocks} blocks leave multiprocessors idle"
    if config["stages"] > max(
        2, geometry.tiles_of_cluster * ceil_div(geometry.slice_units, config["warps_k"])
    ):
        return f"a warp has fewer units than {config['stages']} stages"
    if (geometry.shared_bytes(problem.m) + SM90_BLOCK_BYTES) * max(waves, 1) > SM90_SHARED_BYTES:
        return f"{waves} waves do not fit a multiprocessor"
    if waves == 0:
        return None if blocks >= 2 * device.cores else "a cluster has one tile anyway"
    if waves > 1 and geometry.tiles <= device.cores * (waves - 1) // config["split_k"]:
        return f"{waves - 1} waves have a cluster for every tile"
    if geometry.warps * waves > _MOST_WARPS:
        return f"{geometry.warps * waves} warps have too few registers on a multiprocessor"
    if not _LEAST_RING_BYTES <= geometry.ring_bytes * waves <= _MOST_RING_BYTES:
        return f"{geometry.ring_bytes * waves} bytes of weights under way on a multiprocessor"
    return None


FAMILY = DecodeFamily()
