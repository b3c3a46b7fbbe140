"""Family `wgmma`: 5 to 512 tokens on sm_90 by wgmma, weights from registers, x by tensor copies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune import _C
from autotune.families.estimates import BESIDE, overlapped, speed, waves_us
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

# On an H200 a launch of 128 tokens takes 0.36 of the time to dequantise for 256 and 0.25 of that for 512, so
# that two or four in a row are worth timing.
_TOKENS = range(5, 513)
"""Numbers of tokens for which the family has configs."""

_SOURCE = "wgmma/wgmma.cu"

_ALLOWED = {
    "tile_m": (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128),
    "fragments": (1, 2),
    "warpgroups_n": (1, 2, 3),
    "warpgroups_k": (1, 2, 3),
    "stages": (3, 4, 6),
    "split_k": (1, 2, 3, 4, 6, 8),
    "scale_sums": (0, 1),
}
_TUNABLES = tuple(_ALLOWED)
_LARGEST_TILE = _ALLOWED["tile_m"][-1]

# By the largest tile_m: fragments, warpgroups_n, warpgroups_k, and the blocks for which a multiprocessor's
# registers must suffice. In sweeps of the Llama-7B layers on an H200 more warpgroups, and x fetched by two
# blocks for each other, never won.
_SHAPES = {
    8: {(2, 1, 1): 3, (1, 1, 2): 3, (1, 1, 3): 2, (1, 3, 1): 2, (1, 1, 1): 5},
    16: {(2, 1, 1): 3, (1, 1, 2): 3, (1, 1, 3): 2, (1, 3, 1): 2, (1, 1, 1): 5},
    32: {(1, 1, 2): 2, (1, 1, 3): 1, (1, 3, 1): 1, (1, 1, 1): 4},
    64: {(2, 1, 1): 2, (1, 1, 2): 2, (1, 1, 3): 1, (1, 3, 1): 1, (1, 1, 1): 3},
    128: {(1, 2, 1): 1, (1, 1, 2): 1, (1, 3, 1): 1},
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

# Where a config of the family was the best of a sweep, its estimate was at most 1.17 times the lowest, in 404
# problems of all presets on an H200.
_WORTH_TIMING = 1.25
_APART_BYTES = 24 << 10


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Launch geometry of a config for a layer; mirrors the constants of csrc/cuda/wgmma/block.cuh.

    `groups` are of a unit of 128 columns, `ring_bytes` of weights, and `resident` are the blocks that stand
    on a multiprocessor at once.
    """

    config: Config
    layer: Layer
    warpgroups: int
    rows: int
    tiles: int
    split_k: int
    groups: int
    ring_bytes: int
    shared_bytes: int
    resident: int

    @classmethod
    def of(cls, config: Config, layer: Layer) -> _Geometry:
        tile_m, fragments, along_n, along_k, stages, split_k, _ = (value for _, value in config.values)
        rows = along_n * fragments * 64
        groups = {32: 4, 64: 2}.get(layer.group_size, 1)
        ring_bytes = rows // 16 * along_k * stages * (1024 + groups * 64)
        rings = stages * along_k * 2 * tile_m * 128 + ring_bytes
        own_rows = ceil_div(rows // 16, split_k) * 16
        sums = 0 if split_k == 1 else split_k * own_rows * tile_m * 4
        apart = rows * tile_m * 4 <= _APART_BYTES
        # The kernel rounds its base up to 1024 bytes, and has two barriers per stage and one more.
        shared_bytes = 1024 + (rings + sums if apart else max(rings, sums)) + stages * along_k * 16 + 16
        fitting = SM90_SHARED_BYTES // (shared_bytes + SM90_BLOCK_BYTES)
        return cls(
            config,
            layer,
            warpgroups=along_n * along_k,
            rows=rows,
            tiles=ceil_div(ceil_div(layer.n, 64) * 64, rows),
            split_k=split_k,
            groups=groups,
            ring_bytes=ring_bytes,
            shared_bytes=shared_bytes,
            resident=min(fitting, _least_blocks(tile_m, (fragments, along_n, along_k), layer)),
        )

    @property
    def threads(self) -> int:
        return self.warpgroups * 128 + 32

    @property
    def blocks(self) -> int:
        return self.tiles * self.split_k

    @property
    def units(self) -> int:
        """Of 128 columns, that a warpgroup has at least."""
        return ceil_div(self.layer.k, 128) // (self.split_k * self.config["warpgroups_k"])


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
            or _reject_size(_Geometry.of(config, problem.layer), device)
        )

    def space(self, problem: Problem, device: Device) -> list[Config]:
        estimates = self._estimates(problem, device, _worth_scaling(problem))
        most_us = _WORTH_TIMING * min(estimates.values(), default=0.0)
        return [config for config, us in estimates.items() if us <= most_us]

    def estimate(self, config: Config, problem: Problem, device: Device) -> float:
        return _estimate(_Geometry.of(config, problem.layer), problem.m, device)

    def default(self, problem: Problem, device: Device) -> Config | None:
        estimates = self._estimates(problem, device, _worth_scaling(problem)[:1])
        return min(estimates, key=estimates.__getitem__, default=None)

    def _estimates(self, problem: Problem, device: Device, scalings: Iterable[int]) -> dict[Config, float]:
        """What each valid config for the problem takes, simplest first."""
        layer, tile_m = problem.layer, _tile_m(problem.m)
        if problem.m not in _TOKENS or device.arch != "sm_90" or reject_layer(layer) is not None:
            return {}  # fewer tokens waste most of a product, more dequantise the weights too often
        configs = (
            _config(tile_m, *shape, stages, split_k, scaling)
            for split_k in _ALLOWED["split_k"]
            for stages in _ALLOWED["stages"]
            for shape in _shapes(tile_m)
            for scaling in scalings
        )
        geometries = (_Geometry.of(config, layer) for config in configs)
        return {
            geometry.config: _estimate(geometry, problem.m, device)
            for geometry in geometries
            if _reject_size(geometry, device) is None
        }

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit:
        names = {"warpgroups_n": "GROUPS_N", "warpgroups_k": "GROUPS_K", "split_k": "SPLIT"}
        tunables = tuple((names.get(name, name.upper()), config[name]) for name in _TUNABLES)
        defines = (
            *tunables,
            ("BLOCKS", _least_blocks(config["tile_m"], _shape(config), layer)),
            *layer_defines(layer),
        )
        return Unit(_SOURCE, defines, f"{device.arch}a")

    def launches(self, config: Config, problem: Problem, device: Device) -> tuple[Launch, ...]:  # noqa: ARG002
        return (_launch(config, problem.layer),) * ceil_div(problem.m, config["tile_m"])

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> _WgmmaPlan:
        assert cubin is not None
        return _WgmmaPlan(config, layer, device, cubin)


def _launch(config: Config, layer: Layer) -> Launch:
    """Of up to tile_m tokens."""
    geometry = _Geometry.of(config, layer)
    grid = (config["split_k"], geometry.tiles, 1)
    return Launch(grid, geometry.threads, geometry.shared_bytes, True, box_rows=config["tile_m"])


def _config(*values: int) -> Config:
    return Config("wgmma", tuple(zip(_TUNABLES, values, strict=True)))


def _tile_m(m: int) -> int:
    """The smallest tile that holds m tokens, or an equal share of them where the largest does not."""
    share = ceil_div(m, ceil_div(m, _LARGEST_TILE))
    return next(tile for tile in _ALLOWED["tile_m"] if tile >= share)


def _shapes(tile_m: int) -> dict[tuple[int, int, int], int]:
    return next(shapes for largest, shapes in _SHAPES.items() if largest >= tile_m)


def _shape(config: Config) -> tuple[int, int, int]:
    return config["fragments"], config["warpgroups_n"], config["warpgroups_k"]


def _least_blocks(tile_m: int, shape: tuple[int, int, int], layer: Layer) -> int:
    """Blocks for which a multiprocessor's registers must suffice; one less where that would spill."""
    blocks = _shapes(tile_m)[shape]
    return max(1, blocks - 1) if (layer.dtype, layer.group_size) == ("bf16", 32) else blocks


def _estimate(geometry: _Geometry, m: int, device: Device) -> float:
    layer = geometry.layer
    tile_m, fragments, _, along_k, stages, split_k, _ = (value for _, value in geometry.config.values)
    units = ceil_div(ceil_div(layer.k, 128), split_k * along_k)
    unit_us = _UNIT_US + fragments * (_ROWS_US + _TOKEN_US * tile_m)
    unit_us *= 1 + _GROUP * (geometry.groups - 1)
    sent_us = 0.0 if split_k == 1 else _SENT_US * geometry.rows * tile_m
    read_us = layer.weight_bytes / speed(device).read_bytes
    asked_us = _ASKED * read_us * min(1.0, stages / units)

    def wave_us(blocks: int, share: float) -> float:
        busy_us = overlapped(unit_us, _FETCH_US / stages, blocks * geometry.warpgroups * unit_us)
        return _WAVE_US + sent_us + share * asked_us + overlapped(units * busy_us, share * BESIDE * read_us)

    blocks_us = waves_us(geometry.tiles, split_k, geometry.resident, device.cores, wave_us)
    return _CALL_US + ceil_div(m, tile_m) * blocks_us


def _worth_scaling(problem: Problem) -> tuple[int, ...]:
    """Values of scale_sums worth timing, the likelier first."""
    if problem.m > 32:
        return (0,)
    return (1, 0) if problem.layer.group_size in (32, 64) else (1,)


def _reject_shape(config: Config) -> str | None:
    shapes = _shapes(config["tile_m"])
    if _shape(config) not in shapes:
        known = ", ".join(map(str, shapes))
        return f"fragments, warpgroups_n and warpgroups_k are one of {known} at tile_m={config['tile_m']}"
    if config["scale_sums"] and config["tile_m"] > 32:
        return "the sums of a group besides those of all groups do not fit the registers beyond tile_m=32"
    return None


def _reject_size(geometry: _Geometry, device: Device) -> str | None:
    if not geometry.units:
        return f"k={geometry.layer.k} has less than 128 columns for each slice's warpgroups"
    if geometry.shared_bytes > device.shared_bytes:
        return f"{geometry.shared_bytes} bytes of shared memory; a block has {device.shared_bytes}"
    return None


FAMILY = WgmmaFamily()
