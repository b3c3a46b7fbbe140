"""Family `wgmma`: 5 to 512 tokens on sm_90 by wgmma, weights from registers, x by tensor copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune import _C
from autotune.config import Config
from autotune.kernels.cuda_gemm import (
    SM90_BLOCK_BYTES,
    SM90_SHARED_BYTES,
    ceil_div,
    current_stream,
    layer_defines,
    parts,
    pointer,
    reject_layer,
)
from autotune.kernels.family import Launch, Unit
from autotune.kernels.sources import source_hash

if TYPE_CHECKING:
    import torch

    from autotune.device import Device
    from autotune.layer import Layer, Problem
    from autotune.packing import PackedWeight

# On an H200 a launch of 128 tokens takes 0.36 of the time to dequantise for 256 and 0.25 of that for 512, so
# that two or four in a row are worth timing.
TOKENS = range(5, 513)
"""Numbers of tokens for which the family has configs; it has a default for every layer of theirs."""

_SOURCE = "wgmma.cu"

_ALLOWED = {
    "tile_m": (8, 16, 32, 64, 128),
    "fragments": (1, 2),
    "warpgroups_n": (1, 2, 3),
    "warpgroups_k": (1, 2, 3),
    "stages": (3, 4, 6),
    "split_k": (1, 2, 3, 4, 6, 8),
    "scale_sums": (0, 1),
}
_TUNABLES = tuple(_ALLOWED)
_LARGEST_TILE = _ALLOWED["tile_m"][-1]

# By tile_m: fragments, warpgroups_n, warpgroups_k, and the blocks for which a multiprocessor's registers must
# suffice. In sweeps of the Llama-7B layers on an H200 more warpgroups, and x fetched by two blocks for each
# other, never won.
_SHAPES = {
    8: {(2, 1, 1): 3, (1, 1, 2): 3, (1, 1, 3): 2, (1, 3, 1): 2, (1, 1, 1): 5},
    16: {(2, 1, 1): 3, (1, 1, 2): 3, (1, 1, 3): 2, (1, 3, 1): 2, (1, 1, 1): 5},
    32: {(1, 1, 2): 2, (1, 1, 3): 1, (1, 3, 1): 1, (1, 1, 1): 4},
    64: {(2, 1, 1): 2, (1, 1, 2): 2, (1, 1, 3): 1, (1, 3, 1): 1, (1, 1, 1): 3},
    128: {(1, 2, 1): 1, (1, 1, 2): 1, (1, 3, 1): 1},
}
# Stages of the default, the better first. The defaults of the four linears of a Llama-7B layer add up to 4.3,
# 2.1, 1.1 and 0.7 % more than the winners of a sweep on an H200 at 8, 16, 32 and 64 tokens. There the default
# splits k no further than it takes to be this near to the evenest split.
_DEFAULT_STAGES = (4, 3)
_EVEN_ENOUGH = 0.85

# The winners had this many bytes of weights under way on each multiprocessor.
_LEAST_RING_BYTES = 26000
_MOST_RING_BYTES = 160000
_APART_BYTES = 24 << 10
_WAVES = 6

# What a launch of the largest tile takes, whose blocks have a multiprocessor each: so many columns, more for
# each doubling of slices, and those that it multiplies, which three warpgroups do slower than two. That is a
# fit to races of ten layers on an H100, within 10 % where one wave does. A cluster takes a power of two of
# multiprocessors, and those of more than two leave some unused: 132 hold at most 31 of four and 15 of eight.
_START_COLUMNS = 600
_SLICE_COLUMNS = 150
_COLUMN_OF_THREE = 1.45
_CLUSTERED = 0.93


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Launch geometry of a config for a layer; mirrors the constants of csrc/cuda/wgmma/block.cuh."""

    config: Config
    layer: Layer

    @property
    def threads(self) -> int:
        return self.config["warpgroups_n"] * self.config["warpgroups_k"] * 128 + 32

    @property
    def rows(self) -> int:
        return self.config["warpgroups_n"] * self.config["fragments"] * 64

    @property
    def tiles(self) -> int:
        return ceil_div(ceil_div(self.layer.n, 64) * 64, self.rows)

    @property
    def blocks(self) -> int:
        return self.tiles * self.config["split_k"]

    @property
    def units(self) -> int:
        """Of 128 columns, that a warpgroup has at least."""
        return ceil_div(self.layer.k, 128) // (self.config["split_k"] * self.config["warpgroups_k"])

    @property
    def ring_bytes(self) -> int:
        """Of weights."""
        groups = {32: 4, 64: 2}.get(self.layer.group_size, 1)
        fragments = self.rows // 16 * self.config["warpgroups_k"]
        return fragments * self.config["stages"] * (1024 + groups * 64)

    @property
    def shared_bytes(self) -> int:
        tile_m, along_k, split_k = (self.config[name] for name in ("tile_m", "warpgroups_k", "split_k"))
        stages = self.config["stages"] * along_k
        rings = stages * 2 * tile_m * 128 + self.ring_bytes
        own_rows = ceil_div(self.rows // 16, split_k) * 16
        sums = 0 if split_k == 1 else split_k * own_rows * tile_m * 4
        apart = self.rows * tile_m * 4 <= _APART_BYTES
        # The kernel rounds its base up to 1024 bytes, and has two barriers per stage and one more.
        return 1024 + (rings + sums if apart else max(rings, sums)) + stages * 16 + 16

    @property
    def resident(self) -> int:
        """Blocks that stand on a multiprocessor at once."""
        return min(
            SM90_SHARED_BYTES // (self.shared_bytes + SM90_BLOCK_BYTES),
            _least_blocks(self.config, self.layer),
        )


class _WgmmaPlan:
    """A loaded kernel and its launch geometry for one layer."""

    def __init__(self, config: Config, layer: Layer, device: Device, cubin: bytes) -> None:
        self._launch = launch = _launch(config, layer)
        boxes = (layer.k, launch.box_rows, layer.dtype == "bf16")
        self._function = _C.CudaFunction(cubin, "int4_wgmma", device.index, boxes)
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
        layer, launch = self._layer, self._launch
        stream = current_stream(self._device)
        operands = (weight.qweight.data_ptr(), weight.scales.data_ptr(), pointer(weight.zeros), pointer(bias))
        for start, rows in parts(x.shape[0], launch.box_rows):
            row_bytes = start * x.element_size()
            self._function.launch(
                launch.grid,
                launch.threads,
                launch.shared_bytes,
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
                launch.programmatic,
            )


class WgmmaFamily:
    """Tunables: `tile_m` tokens of a launch, of which more tokens take several; `fragments` of 64 rows of a
    warpgroup; `warpgroups_n` of a block with rows of their own, `warpgroups_k` of these that share the
    columns; `stages` of the rings of x and of weights; `split_k` slices of k, the blocks of a cluster;
    `scale_sums` 1: scales multiply the sums of a group, 0: the weights.
    """

    name = "wgmma"
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
            return f"it needs wgmma of sm_90, not {device.arch}"
        return (
            reject_layer(problem.layer)
            or _reject_shape(config)
            or _reject_size(_Geometry(config, problem.layer), device)
        )

    def space(self, problem: Problem, device: Device) -> list[Config]:
        if problem.m not in TOKENS:
            return []  # fewer waste most of a product, more dequantise the weights too often
        tile_m = _tile_m(problem.m)
        candidates = (
            _config(tile_m, *shape, stages, split_k, scaling)
            for split_k in _ALLOWED["split_k"]
            for stages in _ALLOWED["stages"]
            for shape in _SHAPES[tile_m]
            for scaling in _worth_scaling(problem)
        )
        valid = [config for config in candidates if self.reject(config, problem, device) is None]
        # A layer too small to fill the device has only configs that leave some of it idle.
        return [config for config in valid if _prune(config, problem, device) is None] or valid

    def default(self, problem: Problem, device: Device) -> Config | None:
        if problem.m not in TOKENS:
            return None
        tile_m, scaling = _tile_m(problem.m), _worth_scaling(problem)[0]
        if tile_m == _LARGEST_TILE:
            return min(
                self.space(problem, device),
                key=lambda config: (_estimate(config, problem.layer, device), -config["stages"]),
                default=None,
            )
        preferred = _default_shape(tile_m, problem.layer, device)
        for shape in (preferred, *_SHAPES[tile_m]):  # a k of few columns is not for warpgroups that share it
            configs = [
                _config(tile_m, *shape, stages, split_k, scaling)
                for stages in _DEFAULT_STAGES
                for split_k in _ALLOWED["split_k"]
            ]
            valid = [config for config in configs if self.reject(config, problem, device) is None]
            if valid:
                return _least_split_and_even(valid, problem.layer, device)
        return None

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit:
        names = {"warpgroups_n": "GROUPS_N", "warpgroups_k": "GROUPS_K", "split_k": "SPLIT"}
        tunables = tuple((names.get(name, name.upper()), config[name]) for name in _TUNABLES)
        defines = (*tunables, ("BLOCKS", _least_blocks(config, layer)), *layer_defines(layer))
        return Unit(_SOURCE, defines, f"{device.arch}a")

    def launches(self, config: Config, problem: Problem, device: Device) -> tuple[Launch, ...]:  # noqa: ARG002
        return (_launch(config, problem.layer),) * ceil_div(problem.m, config["tile_m"])

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> _WgmmaPlan:
        assert cubin is not None
        return _WgmmaPlan(config, layer, device, cubin)


def _launch(config: Config, layer: Layer) -> Launch:
    """Of up to tile_m tokens."""
    geometry = _Geometry(config, layer)
    grid = (config["split_k"], geometry.tiles, 1)
    return Launch(grid, geometry.threads, geometry.shared_bytes, True, box_rows=config["tile_m"])


def _config(*values: int) -> Config:
    return Config("wgmma", tuple(zip(_TUNABLES, values, strict=True)))


def _tile_m(m: int) -> int:
    """The smallest tile that holds m tokens, or the largest of all: two of 64 never beat one of 128."""
    return next((tile for tile in _ALLOWED["tile_m"] if tile >= m), _LARGEST_TILE)


def _shape(config: Config) -> tuple[int, int, int]:
    return config["fragments"], config["warpgroups_n"], config["warpgroups_k"]


def _least_blocks(config: Config, layer: Layer) -> int:
    """Blocks for which a multiprocessor's registers must suffice; one less where that would spill."""
    blocks = _SHAPES[config["tile_m"]][_shape(config)]
    return max(1, blocks - 1) if (layer.dtype, layer.group_size) == ("bf16", 32) else blocks


def _default_shape(tile_m: int, layer: Layer, device: Device) -> tuple[int, int, int]:
    """Few rows and a share of k for each warpgroup, unless n alone has nearly enough rows for all."""
    if tile_m <= 16:
        return (2, 1, 1) if layer.n >= device.cores * 128 else (1, 1, 2)
    return (1, 3, 1) if layer.n >= device.cores * 64 else (1, 1, 2)


def _evenness(blocks: int, device: Device) -> float:
    """Mean over largest number of blocks of a multiprocessor."""
    return blocks / (ceil_div(blocks, device.cores) * device.cores)


def _least_split_and_even(configs: list[Config], layer: Layer, device: Device) -> Config:
    evenness = [_evenness(_Geometry(config, layer).blocks, device) for config in configs]
    least = _EVEN_ENOUGH * max(evenness)
    return next(config for config, even in zip(configs, evenness, strict=True) if even >= least)


def _estimate(config: Config, layer: Layer, device: Device) -> float:
    """About how long a launch of the largest tile takes, in columns of two warpgroups."""
    split_k, along_k = config["split_k"], config["warpgroups_k"]
    doublings = (split_k - 1).bit_length()
    cores = device.cores if doublings <= 1 else int(device.cores * _CLUSTERED)
    waves = ceil_div(_Geometry(config, layer).tiles, max(1, cores >> doublings))
    column = _COLUMN_OF_THREE if config["warpgroups_n"] * along_k == 3 else 1.0
    return waves * (_START_COLUMNS + _SLICE_COLUMNS * doublings + layer.k / (split_k * along_k) * column)


def _worth_scaling(problem: Problem) -> tuple[int, ...]:
    """Values of scale_sums worth timing, the likelier first."""
    if problem.m > 32:
        return (0,)
    return (1, 0) if problem.layer.group_size in (32, 64) else (1,)


def _reject_shape(config: Config) -> str | None:
    if _shape(config) not in _SHAPES[config["tile_m"]]:
        known = ", ".join(map(str, _SHAPES[config["tile_m"]]))
        return f"fragments, warpgroups_n and warpgroups_k are one of {known} at tile_m={config['tile_m']}"
    if config["scale_sums"] and config["tile_m"] >= 64:
        return "the sums of a group besides those of all groups do not fit the registers from tile_m=64 on"
    return None


def _reject_size(geometry: _Geometry, device: Device) -> str | None:
    if not geometry.units:
        return f"k={geometry.layer.k} has less than 128 columns for each slice's warpgroups"
    if geometry.shared_bytes > device.shared_bytes:
        return f"{geometry.shared_bytes} bytes of shared memory; a block has {device.shared_bytes}"
    return None


def _prune(config: Config, problem: Problem, device: Device) -> str | None:
    """Why a valid config is not worth timing, or None."""
    geometry = _Geometry(config, problem.layer)
    blocks, resident = geometry.blocks, geometry.resident
    wave = resident * device.cores
    if blocks * 4 < device.cores * 3:
        return f"{blocks} blocks leave multiprocessors idle"
    if config["split_k"] > 1 and blocks > _WAVES * device.cores:
        return f"{blocks} blocks fill the device without so many slices"
    if 1.1 * wave < blocks < 1.5 * wave:
        return f"{blocks - wave} blocks are a second wave of few"
    if config["stages"] > max(_ALLOWED["stages"][0], geometry.units):
        return f"a warpgroup has fewer units than {config['stages']} stages"
    under_way = geometry.ring_bytes * min(resident, ceil_div(blocks, device.cores))
    if not _LEAST_RING_BYTES <= under_way <= _MOST_RING_BYTES:
        return f"{under_way} bytes of weights under way on a multiprocessor"
    return None


FAMILY = WgmmaFamily()
