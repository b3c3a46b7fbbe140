"""Family `mma`: mma.sync on sm_80 and later, weights from global memory straight to registers."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from autotune.families.estimates import overlapped, speed, waves_us
from autotune.families.gemm import CudaFamily, Defines, Geometry, ceil_div, too_large
from autotune.families.protocol import Launch
from autotune.families.workspace import COUNTER_BYTES

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem

_ALLOWED = {
    "tile_m": (8, 16, 32, 64),
    "tile_n": (32, 64, 128, 256),
    "warps": (4, 8, 16),
    "warps_k": (1, 2, 4, 8, 16),
    "loads": (1, 2),
    "split_k": (1, 2, 4, 8, 16, 32),
}

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
_SCALED_SUMS = 1024
"""Most sums of a warp for which scales multiply the sums of a group, and not the weights."""
_WAVES = 6
_SCHEDULERS = 4
_BLOCK_REGISTERS = 65536
_OTHER_REGISTERS = 48
_MOST_WARPS = 48
_BLOCK_BYTES = 1024  # of shared memory, that a block takes besides its own


class MmaGeometry(Geometry):
    """`blocks` of 64 columns are a unit; a warp has at most so many `steps`."""

    most_tokens = _MAX_TOKENS

    def __init__(self, config: Config, layer: Layer, device: Device) -> None:
        super().__init__(config, layer, device)
        self.tile_m, self.tile_n, self.warps, self.warps_k, self.loads, self.split_k = (
            value for _, value in config.values
        )
        self.blocks = 2 if layer.group_size == 128 else 1
        self.units = ceil_div(layer.k, 64) // self.blocks
        self.n_tiles = ceil_div(ceil_div(layer.n, 64) * 64, self.tile_n)
        self.steps = ceil_div(ceil_div(self.units, self.split_k), self.warps_k)

    def tiles(self, m: int) -> int:
        return self.n_tiles * ceil_div(m, self.tile_m)

    def stage_bytes(self, m: int) -> int:
        return min(m, self.tile_m) * (self.warps_k * self.blocks * 64 + 8) * 2

    def resident(self, m: int) -> bool:
        """Whether a block's whole slice of x stays in shared memory."""
        return self.steps <= _RING or self.steps * self.stage_bytes(m) <= _RESIDENT_BYTES

    def shared_bytes(self, m: int) -> int:
        stages = self.steps if self.resident(m) else _RING
        sums = self.warps_k * min(m, self.tile_m) * (self.tile_n + 4) * 4
        return max(stages * self.stage_bytes(m), sums)

    def launch(self, tokens: int) -> Launch:
        """The kernel is told whether x stays in shared memory."""
        grid = (ceil_div(tokens, self.tile_m), self.n_tiles, self.split_k)
        # It waits for the kernels ahead itself on sm_90, once its first weights are on their way.
        programmatic = int(self.device.arch.removeprefix("sm_")) >= 90
        resident = (int(self.resident(tokens)),)
        return Launch(grid, self.warps * 32, self.shared_bytes(tokens), programmatic, resident)

    def workspace_bytes(self, m: int) -> int:
        if self.split_k == 1:
            return 0
        rows = min(m, _MAX_TOKENS)
        return COUNTER_BYTES + self.tiles(rows) * self.split_k * self.tile_m * self.tile_n * 4

    def defines(self) -> Defines:
        return tuple((name.upper(), value) for name, value in self.config.values if name != "split_k")

    def misfit(self, m: int) -> str | None:
        if self.split_k * self.warps_k > max(self.units, 1):
            return f"k has {self.units} units for {self.split_k} slices of {self.warps_k} warps"
        if self.split_k > 1 and self.tiles(min(m, _MAX_TOKENS)) > COUNTER_BYTES // 4:
            return f"{self.tiles(m)} tiles need more counters than the workspace has"
        if self.workspace_bytes(m) > _PARTIAL_BYTES:
            return f"partial sums of {self.split_k} slices take {self.workspace_bytes(m) >> 20} MiB"
        return too_large(self.shared_bytes(m), self.device)

    def pointless(self, m: int) -> str | None:
        """In an exhaustive sweep of 65 Llama-7B problems on an H200 no winner was pruned by any of these."""
        blocks, split_k, cores = self.tiles(m) * self.split_k, self.split_k, self.device.cores
        if self.tile_n < self.tile_m:
            return "a block would read more of x than of the weights"
        if self.steps < self.loads:
            return f"a warp has {self.steps} steps for {self.loads} loads in flight"
        if split_k > 1 and blocks > _WAVES * cores:
            return f"{blocks} blocks fill the device without so many slices"
        if split_k > 1 and 8 * split_k * m > self.layer.k:
            return "writing and reading the partial sums would move more than twice the weights' bytes"
        if blocks * self.warps < cores * _SCHEDULERS:
            return f"{blocks * self.warps} warps leave schedulers of {cores} multiprocessors idle"
        return None

    def blocks_of_core(self, m: int) -> int:
        """About how many blocks stand on a multiprocessor at once."""
        rows = self.tile_n * self.warps_k // self.warps
        registers = (_registers(rows, self.tile_m, self.loads) + _OTHER_REGISTERS) * self.warps * 32
        fitting = (self.device.shared_bytes + _BLOCK_BYTES) // (self.shared_bytes(m) + _BLOCK_BYTES)
        return max(1, min(_BLOCK_REGISTERS // registers, fitting, _MOST_WARPS // self.warps))

    def estimate(self, m: int) -> float:
        tile_m, tile_n, warps = self.tile_m, self.tile_n, self.warps
        rate, steps = speed(self.device), self.steps
        columns = self.blocks * 64 / 1e6
        token_us = _TOKEN_US + 2e6 / rate.mma_operations
        weights_us = tile_n * self.warps_k * columns * (_WEIGHTS_US + token_us * tile_m)
        busy_us = weights_us + warps * columns * tile_m * _X_US

        def wave_us(blocks: int, _: float) -> float:
            return steps * overlapped(_STEP_US, blocks * busy_us)

        blocks = self.tiles(m) * self.split_k
        blocks_us = waves_us(blocks, 1, self.blocks_of_core(m), self.device.cores, wave_us)
        partial = 0 if self.split_k == 1 else blocks * min(m, tile_m) * tile_n
        moved_bytes = self.layer.weight_bytes + _PARTIAL_BYTES_MOVED * partial
        return _CALL_US + overlapped(blocks_us, moved_bytes / rate.read_bytes)


class MmaFamily(CudaFamily):
    """Tunables: `tile_m` tokens and `tile_n` rows of n of a block; `warps` of a block, `warps_k` of them
    along k; `loads` steps of weights in flight per warp; `split_k` slices of k, one block each.
    """

    name = "mma"
    deterministic = True
    tunables = _ALLOWED
    source = "mma/mma.cu"
    kernel = "int4_gemm"
    geometry = MmaGeometry
    scratch = 1

    def reject_shape(self, config: Config) -> str | None:
        tile_m, tile_n, warps, warps_k, loads, _ = (value for _, value in config.values)
        if warps % warps_k:
            return f"warps_k={warps_k} does not divide warps={warps}"
        rows = tile_n * warps_k // warps
        if rows not in (16, 32, 64):
            return f"the rows of n of a warp would be {rows}, not 16, 32 or 64"
        registers = _registers(rows, tile_m, loads)
        if registers > min(200, _BLOCK_REGISTERS // (warps * 32) - _OTHER_REGISTERS):
            return f"about {registers} registers of data per thread do not fit {warps} warps"
        return None

    def order(self, config: Config, layer: Layer, device: Device) -> Hashable | None:  # noqa: ARG002
        """Of those that scale the sums of a group, which tiles of any number of tokens can."""
        rows = config["tile_n"] * config["warps_k"] // config["warps"]
        scales_sums = rows * config["tile_m"] <= _SCALED_SUMS
        return (self.name, config["warps_k"], config["split_k"]) if scales_sums else None

    def ordered(self, problem: Problem, device: Device) -> Iterator[Config]:
        candidates = (config for config in self.candidates(problem, device) if config["loads"] == 1)
        ordered = (config for config in candidates if self.order(config, problem.layer, device))
        return (found.config for found in self._fitting(ordered, problem, device))

    def candidates(self, problem: Problem, device: Device) -> Iterator[Config]:  # noqa: ARG002
        tile_m = _tile_m(problem.m)
        order = ("split_k", "loads", "warps_k", "warps", "tile_n")
        for split_k, loads, warps_k, warps, tile_n in product(*map(_ALLOWED.__getitem__, order)):
            config = self.config(tile_m, tile_n, warps, warps_k, loads, split_k)
            if self.reject_shape(config) is None:
                yield config

    def space(self, problem: Problem, device: Device) -> list[Config]:
        if device.arch == "sm_90":
            # In 125 problems of the Llama-7B layers in five formats on an H200 nothing of its space came
            # nearer than 13 % to the best: there are better instructions.
            default = self.default(problem, device)
            return [] if default is None else [default]
        return super().space(problem, device)

    def defaults(self, problem: Problem, device: Device) -> Iterator[Config]:  # noqa: ARG002
        tile_m = _tile_m(problem.m)
        for split_k in _ALLOWED["split_k"]:
            for shape in (*_SHAPES[tile_m], (64, 4, 1)):  # the last is for few columns
                yield self.config(tile_m, *shape, 1, split_k)


def _tile_m(m: int) -> int:
    """The smallest token tile that holds m, so that weights are read once; the largest above that."""
    return next((tile for tile in _ALLOWED["tile_m"] if tile >= m), _ALLOWED["tile_m"][-1])


def _registers(rows: int, tile_m: int, loads: int) -> int:
    """About how many a thread needs for data: sums, tokens of half a block, and the words of two steps."""
    sums = rows * tile_m // 32 * (2 if rows * tile_m <= _SCALED_SUMS else 1)
    return sums + tile_m // 2 + rows * loads // 2


FAMILY = MmaFamily()
