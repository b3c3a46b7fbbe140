"""Family `mma`: mma.sync on sm_80 and later, weights from global memory straight to registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune import _C
from autotune.families.estimates import overlapped, speed, waves_us
from autotune.families.gemm import (
    ceil_div,
    current_stream,
    layer_defines,
    parts,
    pointer,
    reject_layer,
)
from autotune.families.protocol import Launch
from autotune.families.workspace import COUNTER_BYTES
from autotune.jit.sources import source_hash
from autotune.jit.unit import Unit
from autotune.values.config import Config

if TYPE_CHECKING:
    import torch

    from autotune.layouts import PackedWeight
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem

_TILE_M = (8, 16, 32, 64)
_TILE_N = (32, 64, 128, 256)
_WARPS = (4, 8, 16)
_WARPS_K = (1, 2, 4, 8, 16)
_LOADS = (1, 2)
_SOURCE = "mma/mma.cu"
_SPLIT_K = (1, 2, 4, 8, 16, 32)
_TUNABLES = ("tile_m", "tile_n", "warps", "warps_k", "loads", "split_k")

# By tile_m: tile_n, warps and warps_k of the default. They won or nearly won most of the Llama-7B layers in a
# sweep on an H200. Those of 64 rows for a warp at 64 tokens spill up to 160 bytes, and won nevertheless.
_SHAPES = {
    8: ((128, 4, 2), (64, 4, 4), (64, 8, 8), (128, 8, 4)),
    16: ((64, 4, 4), (128, 4, 2), (128, 8, 4), (128, 16, 4)),
    32: ((128, 4, 2), (128, 8, 2), (128, 8, 4), (128, 16, 2)),
    64: ((128, 4, 2), (128, 8, 2), (128, 8, 4), (64, 8, 4)),
}

# What a call takes, in microseconds: itself; a warp for a step, however few others there are; and a
# multiprocessor for a million weights, for each of their tokens besides the tensor cores, and for a million
# elements of x in a warp's hands. A partial sum is worth so many bytes of weights. Least squares over what
# won, nearly won or was the default of Llama-7B in two sweeps on an H200, in one of which calls started
# ahead of their turn: there each took 0.8 less.
_CALL_US = 4.9
_STEP_US = 0.34
_WEIGHTS_US = 5.8
_TOKEN_US = 0.324
_X_US = 4.26
_PARTIAL_BYTES_MOVED = 21.7

_RING = 3
_RESIDENT_BYTES = 64 << 10
_PARTIAL_BYTES = 256 << 20
_MAX_TOKENS = 4096
_WAVES = 6
_SCHEDULERS = 4
_BLOCK_REGISTERS = 65536
_OTHER_REGISTERS = 48
_MOST_WARPS = 48
_BLOCK_BYTES = 1024  # of shared memory, that a block takes besides its own


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Launch geometry of a config for a layer; mirrors the constants at the head of csrc/cuda/mma/mma.cu."""

    tile_m: int
    tile_n: int
    warps: int
    warps_k: int
    split_k: int
    n: int
    blocks: int
    units: int

    @classmethod
    def of(cls, config: Config, layer: Layer) -> _Geometry:
        blocks = 2 if layer.group_size == 128 else 1
        return cls(
            tile_m=config["tile_m"],
            tile_n=config["tile_n"],
            warps=config["warps"],
            warps_k=config["warps_k"],
            split_k=config["split_k"],
            n=layer.n,
            blocks=blocks,
            units=ceil_div(layer.k, 64) // blocks,
        )

    @property
    def n_tiles(self) -> int:
        return ceil_div(ceil_div(self.n, 64) * 64, self.tile_n)

    def tiles(self, m: int) -> int:
        return self.n_tiles * ceil_div(m, self.tile_m)

    @property
    def steps(self) -> int:
        """Most steps of a warp."""
        return ceil_div(ceil_div(self.units, self.split_k), self.warps_k)

    def resident(self, m: int) -> bool:
        """Whether a block's whole slice of x stays in shared memory."""
        return self.steps <= _RING or self.steps * self._stage_bytes(m) <= _RESIDENT_BYTES

    def shared_bytes(self, m: int) -> int:
        stages = self.steps if self.resident(m) else _RING
        sums = self.warps_k * min(m, self.tile_m) * (self.tile_n + 4) * 4
        return max(stages * self._stage_bytes(m), sums)

    def workspace_bytes(self, m: int) -> int:
        if self.split_k == 1:
            return 0
        rows = min(m, _MAX_TOKENS)
        return COUNTER_BYTES + self.tiles(rows) * self.split_k * self.tile_m * self.tile_n * 4

    def blocks_of_core(self, m: int, loads: int, device: Device) -> int:
        """About how many blocks stand on a multiprocessor at once."""
        rows = self.tile_n * self.warps_k // self.warps
        registers = (_registers(rows, self.tile_m, loads) + _OTHER_REGISTERS) * self.warps * 32
        core_bytes = device.shared_bytes + _BLOCK_BYTES
        fitting = core_bytes // (self.shared_bytes(m) + _BLOCK_BYTES)
        return max(1, min(_BLOCK_REGISTERS // registers, fitting, _MOST_WARPS // self.warps))

    def _stage_bytes(self, m: int) -> int:
        return min(m, self.tile_m) * (self.warps_k * self.blocks * 64 + 8) * 2


class _MmaPlan:
    """A loaded kernel and its launch geometry for one layer."""

    def __init__(self, config: Config, layer: Layer, device: Device, cubin: bytes) -> None:
        self._function = _C.CudaFunction(cubin, "int4_gemm", device.index)
        self._geometry = _Geometry.of(config, layer)
        self._launches: dict[int, Launch] = {}
        self._layer = layer
        self._device = device

    def workspace_bytes(self, m: int) -> int:
        return self._geometry.workspace_bytes(m)

    def run(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor | None,
    ) -> None:
        layer, m = self._layer, x.shape[0]
        stream = current_stream(self._device)
        operands = (weight.qweight.data_ptr(), weight.scales.data_ptr(), pointer(weight.zeros), pointer(bias))
        for start, rows in parts(m, _MAX_TOKENS):
            row_bytes = start * x.element_size()
            launch = self._launches.get(rows) or self._launch(rows)
            self._function.launch(
                launch.grid,
                launch.threads,
                launch.shared_bytes,
                stream,
                (
                    x.data_ptr() + row_bytes * layer.k,
                    *operands,
                    out.data_ptr() + row_bytes * layer.n,
                    pointer(workspace),
                    rows,
                    layer.n,
                    layer.k,
                    *launch.arguments,
                ),
                launch.programmatic,
            )

    def _launch(self, rows: int) -> Launch:
        """Kept, because a call has no time for it."""
        return self._launches.setdefault(rows, _launch(self._geometry, rows, self._device))


class MmaFamily:
    """Tunables: `tile_m` tokens and `tile_n` rows of n of a block; `warps` of a block, `warps_k` of them
    along k; `loads` steps of weights in flight per warp; `split_k` slices of k, one block each.
    """

    name = "mma"
    kind = "cuda"

    def source_hash(self) -> str:
        return source_hash(_SOURCE)

    def reject(self, config: Config, problem: Problem, device: Device) -> str | None:
        if tuple(config) != _TUNABLES:
            return f"its tunables are {', '.join(_TUNABLES)}"
        allowed = (_TILE_M, _TILE_N, _WARPS, _WARPS_K, _LOADS, _SPLIT_K)
        for name, values in zip(_TUNABLES, allowed, strict=True):
            if config[name] not in values:
                return f"{name}={config[name]} is not one of {', '.join(map(str, values))}"
        return (
            reject_layer(problem.layer)
            or _reject_shape(config)
            or _reject_size(_Geometry.of(config, problem.layer), problem.m, device)
        )

    def space(self, problem: Problem, device: Device) -> list[Config]:
        if device.arch == "sm_90":
            # In 125 problems of the Llama-7B layers in five formats on an H200 nothing of its space came
            # nearer than 13 % to the best: there are better instructions.
            default = self.default(problem, device)
            return [] if default is None else [default]
        tile_m = _tile_m(problem.m)
        candidates = (
            _config(tile_m, tile_n, warps, warps_k, loads, split_k)
            for split_k in _SPLIT_K
            for loads in _LOADS
            for warps_k in _WARPS_K
            for warps in _WARPS
            for tile_n in _TILE_N
            if warps % warps_k == 0
        )
        valid = [config for config in candidates if self.reject(config, problem, device) is None]
        # A layer too small to fill the device has only configs that leave some of it idle.
        return [config for config in valid if _prune(config, problem, device) is None] or valid

    def estimate(self, config: Config, problem: Problem, device: Device) -> float:
        return _estimate(_Geometry.of(config, problem.layer), config["loads"], problem, device)

    def default(self, problem: Problem, device: Device) -> Config | None:
        if reject_layer(problem.layer) is not None:
            return None
        tile_m = _tile_m(problem.m)
        shapes = (*_SHAPES[tile_m], (64, 4, 1))  # the last is for few columns
        configs = (_config(tile_m, *shape, 1, split_k) for split_k in _SPLIT_K for shape in shapes)
        geometries = ((config, _Geometry.of(config, problem.layer)) for config in configs)
        estimates = {
            config: _estimate(geometry, 1, problem, device)
            for config, geometry in geometries
            if _reject_size(geometry, problem.m, device) is None
        }
        return min(estimates, key=estimates.__getitem__, default=None)

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit:
        tunables = tuple((name.upper(), config[name]) for name in _TUNABLES if name != "split_k")
        return Unit(_SOURCE, tunables + layer_defines(layer), device.arch)

    def launches(self, config: Config, problem: Problem, device: Device) -> tuple[Launch, ...]:
        geometry = _Geometry.of(config, problem.layer)
        return tuple(_launch(geometry, rows, device) for _, rows in parts(problem.m, _MAX_TOKENS))

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> _MmaPlan:
        assert cubin is not None
        return _MmaPlan(config, layer, device, cubin)


def _launch(geometry: _Geometry, rows: int, device: Device) -> Launch:
    """Of so many tokens; the kernel is told whether x stays in shared memory."""
    grid = (ceil_div(rows, geometry.tile_m), geometry.n_tiles, geometry.split_k)
    # mma.cu waits for the kernels ahead itself on sm_90, once its first weights are on their way.
    programmatic = int(device.arch.removeprefix("sm_")) >= 90
    resident = (int(geometry.resident(rows)),)
    return Launch(grid, geometry.warps * 32, geometry.shared_bytes(rows), programmatic, resident)


def _estimate(geometry: _Geometry, loads: int, problem: Problem, device: Device) -> float:
    tile_m, tile_n, warps, m = geometry.tile_m, geometry.tile_n, geometry.warps, problem.m
    rate, steps = speed(device), geometry.steps
    columns = geometry.blocks * 64 / 1e6
    token_us = _TOKEN_US + 2e6 / rate.mma_operations
    weights_us = tile_n * geometry.warps_k * columns * (_WEIGHTS_US + token_us * tile_m)
    busy_us = weights_us + warps * columns * tile_m * _X_US

    def wave_us(blocks: int, _: float) -> float:
        return steps * overlapped(_STEP_US, blocks * busy_us)

    blocks = geometry.tiles(m) * geometry.split_k
    blocks_us = waves_us(blocks, 1, geometry.blocks_of_core(m, loads, device), device.cores, wave_us)
    partial = 0 if geometry.split_k == 1 else blocks * min(m, tile_m) * tile_n
    moved_bytes = problem.layer.weight_bytes + _PARTIAL_BYTES_MOVED * partial
    return _CALL_US + overlapped(blocks_us, moved_bytes / rate.read_bytes)


def _config(tile_m: int, tile_n: int, warps: int, warps_k: int, loads: int, split_k: int) -> Config:
    return Config("mma", tuple(zip(_TUNABLES, (tile_m, tile_n, warps, warps_k, loads, split_k), strict=True)))


def _tile_m(m: int) -> int:
    """The smallest token tile that holds m, so that weights are read once; the largest above that."""
    return next((tile for tile in _TILE_M if tile >= m), _TILE_M[-1])


def _registers(rows: int, tile_m: int, loads: int) -> int:
    """About how many a thread needs for data: sums, tokens of half a block, and the words of two steps."""
    return rows * tile_m // 32 * (2 if rows * tile_m <= 1024 else 1) + tile_m // 2 + rows * loads // 2


def _reject_shape(config: Config) -> str | None:
    tile_m, tile_n, warps, warps_k = (config[name] for name in ("tile_m", "tile_n", "warps", "warps_k"))
    if warps % warps_k:
        return f"warps_k={warps_k} does not divide warps={warps}"
    rows = tile_n * warps_k // warps
    if rows not in (16, 32, 64):
        return f"a warp would own {rows} rows of n; it can own 16, 32 or 64"
    registers = _registers(rows, tile_m, config["loads"])
    if registers > min(200, _BLOCK_REGISTERS // (warps * 32) - _OTHER_REGISTERS):
        return f"about {registers} registers of data per thread do not fit {warps} warps"
    return None


def _reject_size(geometry: _Geometry, m: int, device: Device) -> str | None:
    if geometry.split_k * geometry.warps_k > max(geometry.units, 1):
        return f"k has {geometry.units} units for {geometry.split_k} slices of {geometry.warps_k} warps"
    if geometry.split_k > 1 and geometry.tiles(min(m, _MAX_TOKENS)) > COUNTER_BYTES // 4:
        return f"{geometry.tiles(m)} tiles need more counters than the workspace has"
    if geometry.workspace_bytes(m) > _PARTIAL_BYTES:
        return f"partial sums of {geometry.split_k} slices take {geometry.workspace_bytes(m) >> 20} MiB"
    if geometry.shared_bytes(m) > device.shared_bytes:
        return f"{geometry.shared_bytes(m)} bytes of shared memory; a block has {device.shared_bytes}"
    return None


def _prune(config: Config, problem: Problem, device: Device) -> str | None:
    """Why a valid config is not worth timing, or None.

    In an exhaustive sweep of 65 Llama-7B problems on an H200 no winner was pruned by any of these.
    """
    geometry = _Geometry.of(config, problem.layer)
    split_k = geometry.split_k
    blocks = geometry.tiles(problem.m) * split_k
    if geometry.tile_n < geometry.tile_m:
        return "a block would read more of x than of the weights"
    if geometry.steps < config["loads"]:
        return f"a warp has {geometry.steps} steps for {config['loads']} loads in flight"
    if split_k > 1 and blocks > _WAVES * device.cores:
        return f"{blocks} blocks fill the device without so many slices"
    if split_k > 1 and 8 * split_k * problem.m > problem.layer.k:
        return "writing and reading the partial sums would move more than twice the weights' bytes"
    if blocks * geometry.warps < device.cores * _SCHEDULERS:
        return f"{blocks * geometry.warps} warps leave schedulers of {device.cores} multiprocessors idle"
    return None


FAMILY = MmaFamily()
