"""Family `wgmma`: 5 to 64 tokens on sm_90 by wgmma, weights from registers, x by tensor copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune import _C
from autotune.config import Config
from autotune.kernels.cuda_gemm import (
    COMMON_SOURCES,
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

TOKENS = range(5, 65)
"""Numbers of tokens for which the family has configs; it has a default for every layer of theirs."""

_ALLOWED = {
    "tile_m": (8, 16, 32, 64),
    "fragments": (1, 2),
    "warpgroups": (1, 2),
    "stages": (3, 4),
    "split_k": (1, 2, 3, 4, 6, 8),
    "scale_sums": (0, 1),
}
_TUNABLES = tuple(_ALLOWED)

# fragments and warpgroups. In a sweep of the Llama-7B layers on an H200, blocks of 256 rows, warpgroups that
# share k, and x fetched by two blocks for each other never won from m = 16 on.
_SHAPES = ((2, 1), (1, 2))
# The default: blocks of a full wave up to which k is split, because clusters do not fill a device to the last
# place, and the units of a block, by tile_m, up to which two warpgroups are faster than one.
_FULL = 0.9
_FEW_UNITS = {8: 0, 16: 5, 32: 5, 64: 16}

# A Hopper multiprocessor: its shared memory, and what each block takes of it besides its own. The winners had
# this many bytes of weights under way on each.
_SHARED_BYTES = 233472
_BLOCK_BYTES = 1024
_LEAST_RING_BYTES = 40000
_MOST_RING_BYTES = 160000
_APART_BYTES = 24 << 10
_WAVES = 6


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Launch geometry of a config for a layer; mirrors the constants at the head of csrc/cuda/wgmma.cu."""

    config: Config
    layer: Layer

    @property
    def threads(self) -> int:
        return self.config["warpgroups"] * 128 + 32

    @property
    def rows(self) -> int:
        return self.config["warpgroups"] * self.config["fragments"] * 64

    @property
    def tiles(self) -> int:
        return ceil_div(ceil_div(self.layer.n, 64) * 64, self.rows)

    @property
    def blocks(self) -> int:
        return self.tiles * self.config["split_k"]

    @property
    def units(self) -> int:
        return _units(self.layer)

    @property
    def ring_bytes(self) -> int:
        """Of weights."""
        groups = {32: 4, 64: 2}.get(self.layer.group_size, 1)
        return self.rows // 16 * self.config["stages"] * (1024 + groups * 64)

    @property
    def shared_bytes(self) -> int:
        tile_m, stages, split_k = (self.config[name] for name in ("tile_m", "stages", "split_k"))
        rings = stages * 2 * tile_m * 128 + self.ring_bytes
        own_rows = ceil_div(self.rows // 16, split_k) * 16
        sums = split_k * own_rows * (tile_m + 10) * 4
        apart = self.rows * (tile_m + 10) * 4 <= _APART_BYTES
        # The kernel rounds its base up to 1024 bytes, and has two barriers per stage and one more.
        return 1024 + (rings + sums if apart else max(rings, sums)) + stages * 16 + 16

    @property
    def resident(self) -> int:
        """Blocks that stand on a multiprocessor at once."""
        return min(_SHARED_BYTES // (self.shared_bytes + _BLOCK_BYTES), _least_blocks(self.config["tile_m"]))


class _WgmmaPlan:
    """A loaded kernel and its launch geometry for one layer."""

    def __init__(self, config: Config, layer: Layer, device: Device, cubin: bytes) -> None:
        boxes = (layer.k, config["tile_m"], layer.dtype == "bf16")
        self._function = _C.CudaFunction(cubin, "int4_wgmma", device.index, boxes)
        geometry = _Geometry(config, layer)
        # Read here, because a call has no time for it.
        self._grid = (config["split_k"], geometry.tiles, 1)
        self._threads, self._shared_bytes = geometry.threads, geometry.shared_bytes
        self._tile_m = config["tile_m"]
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
                self._shared_bytes,
                stream,
                (
                    x.data_ptr() + row_bytes * layer.k,
                    rows,
                    *operands,
                    out.data_ptr() + row_bytes * layer.n,
                    rows,
                    layer.n,
                    layer.k,
                ),
                True,
            )


class WgmmaFamily:
    """Tunables: `tile_m` tokens of a launch; `fragments` of 64 rows of a warpgroup; `warpgroups` of a block;
    `stages` of the rings of x and of weights; `split_k` slices of k, the blocks of a cluster; `scale_sums` 1:
    scales multiply the sums of a group, 0: the weights.
    """

    name = "wgmma"
    kind = "cuda"

    def source_hash(self) -> str:
        return hash_sources("wgmma.cu", "common/wgmma.cuh", *COMMON_SOURCES)

    def reject(self, config: Config, problem: Problem, device: Device) -> str | None:
        if tuple(config) != _TUNABLES:
            return f"its tunables are {', '.join(_TUNABLES)}"
        for name, values in _ALLOWED.items():
            if config[name] not in values:
                return f"{name}={config[name]} is not one of {', '.join(map(str, values))}"
        if device.arch != "sm_90":
            return f"it needs wgmma of sm_90, not {device.arch}"
        return (
            reject_layer(problem.layer)
            or _reject_shape(config)
            or _reject_size(_Geometry(config, problem.layer), device)
        )

    def space(self, problem: Problem, device: Device) -> list[Config]:
        if problem.m not in TOKENS:
            return []  # fewer waste most of a product, more read the weights again
        tile_m, scale_sums = _tile_m(problem.m), _worth_scaling(problem)
        candidates = (
            _config(tile_m, fragments, warpgroups, stages, split_k, scaling)
            for split_k in _ALLOWED["split_k"]
            for stages in _ALLOWED["stages"]
            for fragments, warpgroups in _SHAPES
            for scaling in scale_sums
        )
        valid = [config for config in candidates if self.reject(config, problem, device) is None]
        # A layer too small to fill the device has only configs that leave some of it idle.
        return [config for config in valid if _prune(config, problem, device) is None] or valid

    def default(self, problem: Problem, device: Device) -> Config | None:
        if problem.m not in TOKENS:
            return None
        tile_m, scaling = _tile_m(problem.m), _worth_scaling(problem)[0]
        units, tiles = _units(problem.layer), ceil_div(problem.layer.n, 128)
        most = min(units, int(_FULL * _least_blocks(tile_m) * device.cores) // tiles)
        split_k = max(split for split in _ALLOWED["split_k"] if split <= max(1, most))
        shape = _SHAPES[units // split_k <= _FEW_UNITS[tile_m]]
        config = _config(tile_m, *shape, 4, split_k, scaling)
        return config if self.reject(config, problem, device) is None else None

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit:
        names = ("tile_m", "fragments", "warpgroups", "stages", "scale_sums")
        tunables = tuple((name.upper(), config[name]) for name in names)
        shape = (("SPLIT", config["split_k"]), ("BLOCKS", _least_blocks(config["tile_m"])))
        defines = tunables + shape + layer_defines(layer)
        return Unit("wgmma.cu", defines, f"{device.arch}a", self.source_hash())

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> _WgmmaPlan:
        assert cubin is not None
        return _WgmmaPlan(config, layer, device, cubin)


def _config(*values: int) -> Config:
    return Config("wgmma", tuple(zip(_TUNABLES, values, strict=True)))


def _tile_m(m: int) -> int:
    return next(tile for tile in _ALLOWED["tile_m"] if tile >= m)


def _units(layer: Layer) -> int:
    return ceil_div(layer.k, 128)


def _least_blocks(tile_m: int) -> int:
    """Blocks for which a multiprocessor's registers must suffice."""
    return 3 if tile_m <= 16 else 2


def _worth_scaling(problem: Problem) -> tuple[int, ...]:
    """Values of scale_sums worth timing, the likelier first."""
    if problem.m > 32 or problem.layer.group_size == 32:
        return (0,)
    return (1,) if problem.m <= 8 or problem.layer.group_size == 128 else (1, 0)


def _reject_shape(config: Config) -> str | None:
    shape = config["fragments"], config["warpgroups"]
    if shape not in _SHAPES:
        return f"a block would have {shape[0] * shape[1] * 64} rows; it has 128"
    if config["scale_sums"] and config["tile_m"] == 64:
        return "the sums of a group besides those of all groups do not fit the registers at tile_m=64"
    return None


def _reject_size(geometry: _Geometry, device: Device) -> str | None:
    if geometry.config["split_k"] > geometry.units:
        return f"k has {geometry.units} units for {geometry.config['split_k']} slices"
    if geometry.shared_bytes > device.shared_bytes:
        return f"{geometry.shared_bytes} bytes of shared memory; a block has {device.shared_bytes}"
    return None


def _prune(config: Config, problem: Problem, device: Device) -> str | None:
    """Why a valid config is not worth timing, or None."""
    geometry = _Geometry(config, problem.layer)
    split_k, blocks, resident = config["split_k"], geometry.blocks, geometry.resident
    wave = resident * device.cores
    if blocks * 4 < device.cores * 3:
        return f"{blocks} blocks leave multiprocessors idle"
    if split_k > 1 and blocks > _WAVES * device.cores:
        return f"{blocks} blocks fill the device without so many slices"
    if split_k < 4 and blocks < wave // 2:
        return f"{blocks} blocks leave half of {wave} places empty"
    if 1.1 * wave < blocks < 1.5 * wave:
        return f"{blocks - wave} blocks are a second wave of few"
    if config["stages"] > max(_ALLOWED["stages"][0], geometry.units // split_k):
        return f"a block has fewer units than {config['stages']} stages"
    under_way = geometry.ring_bytes * min(resident, ceil_div(blocks, device.cores))
    if not _LEAST_RING_BYTES <= under_way <= _MOST_RING_BYTES:
        return f"{under_way} bytes of weights under way on a multiprocessor"
    return None


FAMILY = WgmmaFamily()
