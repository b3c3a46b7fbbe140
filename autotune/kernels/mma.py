"""Family `mma`: mma.sync on sm_80 and later, weights from global memory straight to registers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune import _C
from autotune.config import Config
from autotune.kernels.cuda_gemm import (
    ceil_div,
    current_stream,
    layer_defines,
    parts,
    pointer,
    reject_layer,
)
from autotune.kernels.family import Launch, Unit
from autotune.kernels.sources import source_hash
from autotune.kernels.wgmma import TOKENS
from autotune.kernels.workspace import COUNTER_BYTES

if TYPE_CHECKING:
    import torch

    from autotune.device import Device
    from autotune.layer import Layer, Problem
    from autotune.packing import PackedWeight

_TILE_M = (8, 16, 32, 64)
_TILE_N = (32, 64, 128, 256)
_WARPS = (4, 8, 16)
_WARPS_K = (1, 2, 4, 8, 16)
_LOADS = (1, 2)
_SOURCE = "mma.cu"
_SPLIT_K = (1, 2, 4, 8, 16, 32)
_TUNABLES = ("tile_m", "tile_n", "warps", "warps_k", "loads", "split_k")

# Up to m tokens: tile_n, warps, warps_k, and blocks per multiprocessor up to which k is split. The rows had
# the least mean regret, of those that do not spill, over the Llama-7B layers in a sweep on an H200.
_DEFAULTS = (
    (4, 128, 4, 2, 4),
    (8, 64, 8, 8, 2),
    (16, 64, 4, 4, 3),
    (32, 128, 8, 2, 3),
    (64, 128, 8, 2, 1),
    (math.inf, 128, 4, 2, 3),
)

_RING = 3
_RESIDENT_BYTES = 64 << 10
_PARTIAL_BYTES = 256 << 20
_MAX_TOKENS = 4096
_WAVES = 6
_SCHEDULERS = 4
_BLOCK_REGISTERS = 65536


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Launch geometry of a config for a layer; mirrors the constants at the head of csrc/cuda/mma.cu."""

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
            # In 125 problems of the Llama-7B layers in five formats on an H200, up to 256 tokens, nothing of
            # its space came nearer than 13 % to the best of `decode` and `wgmma`; beyond, torch's matmul uses
            # wgmma.
            default = self.default(problem, device) if problem.m < TOKENS.start else None
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

    def default(self, problem: Problem, device: Device) -> Config | None:
        if reject_layer(problem.layer) is not None:
            return None
        if device.arch == "sm_90" and problem.m in TOKENS:
            return None  # family `wgmma` is faster there, and has a default for every layer
        tile_m = _tile_m(problem.m)
        _, tile_n, warps, warps_k, waves = next(row for row in _DEFAULTS if problem.m <= row[0])
        for split_k in reversed(_SPLIT_K):
            config = _config(tile_m, tile_n, warps, warps_k, 1, split_k)
            blocks = _Geometry.of(config, problem.layer).tiles(problem.m) * split_k
            fits = split_k == 1 or blocks <= waves * device.cores
            if fits and self.reject(config, problem, device) is None:
                return config
        return _config(tile_m, 64, 4, 1, 1, 1)

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


def _config(tile_m: int, tile_n: int, warps: int, warps_k: int, loads: int, split_k: int) -> Config:
    return Config("mma", tuple(zip(_TUNABLES, (tile_m, tile_n, warps, warps_k, loads, split_k), strict=True)))


def _tile_m(m: int) -> int:
    """The smallest token tile that holds m, so that weights are read once; the largest above that."""
    return next((tile for tile in _TILE_M if tile >= m), _TILE_M[-1])


def _reject_shape(config: Config) -> str | None:
    tile_m, tile_n, warps, warps_k = (config[name] for name in ("tile_m", "tile_n", "warps", "warps_k"))
    if warps % warps_k:
        return f"warps_k={warps_k} does not divide warps={warps}"
    rows = tile_n * warps_k // warps
    if rows not in (16, 32, 64):
        return f"a warp would own {rows} rows of n; it can own 16, 32 or 64"
    # Sums, tokens of half a block, and the words of two steps stay in registers.
    registers = (
        rows * tile_m // 32 * (2 if rows * tile_m <= 1024 else 1) + tile_m // 2 + rows * config["loads"] // 2
    )
    if registers > min(200, _BLOCK_REGISTERS // (warps * 32) - 48):
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
