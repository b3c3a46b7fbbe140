"""Family `dequant_matmul`: dequantise some rows into a reused workspace, then cuBLASLt's matmul on them.

cuBLASLt is called by itself, because torch's matmul and the views that it takes cost the host half as much
again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune import _C
from autotune.families.estimates import quickest, speed
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

_SOURCE = "dequant_matmul/dequant_matmul.cu"
_CHUNK_MB = (256, 64)
_FEWEST_TOKENS = 64

# What a call takes, in microseconds, besides reading and multiplying: itself, and each wave of cuBLAS'
# blocks. The dequantiser's writing takes this many times as long as reading as much. Least squares over a
# sweep of the layers of Llama-7B and Llama-3-8B on an H200.
_CALL_US = 3.9
_WAVE_US = 0.47
_WRITE = 1.08

_TILE_SIDES = (64, 128, 192, 256)
_MOST_TILE = 128 * 256
_TILES = [(n, m) for n in _TILE_SIDES for m in _TILE_SIDES if n * m <= _MOST_TILE]
"""Rows of n and tokens of a block of cuBLAS, whichever suits the product best."""


def _chunk_rows(config: Config, layer: Layer) -> int:
    """Rows of n dequantised at once: whole blocks of 64 that fit the chunk, at least one block."""
    fitting = (config["chunk_mb"] << 20) // (2 * layer.k) // 64 * 64
    return min(layer.n, max(64, fitting))


def _launches(config: Config, layer: Layer) -> tuple[Launch, ...]:
    """Of each chunk; the arguments are its first row and its rows."""
    columns = ceil_div(layer.k, 64)
    return tuple(
        Launch((columns, ceil_div(rows, 64), 1), 128, 0, False, (start, rows))
        for start, rows in parts(layer.n, _chunk_rows(config, layer))
    )


def _multiply_us(rows: int, problem: Problem, device: Device) -> float:
    """How long cuBLAS takes for so many rows of n."""
    rate = speed(device).dense_operations

    def tiled_us(tile_n: int, tile_m: int) -> float:
        waves = ceil_div(ceil_div(rows, tile_n) * ceil_div(problem.m, tile_m), device.cores)
        return waves * (_WAVE_US + 2 * problem.layer.k * tile_n * tile_m / rate)

    return min(tiled_us(*tile) for tile in _TILES)


class _DequantMatmulPlan:
    def __init__(self, config: Config, layer: Layer, device: Device, cubin: bytes) -> None:
        chunks = []
        for launch in _launches(config, layer):
            start, rows = launch.arguments
            shape = launch.grid, launch.threads, launch.shared_bytes, launch.programmatic
            chunks.append((*shape, start, rows))
        bf16 = layer.dtype == "bf16"
        self._matmul = _C.DequantMatmul(cubin, "dequantize", device.index, layer.n, layer.k, bf16, chunks)
        self._chunk_bytes = 2 * _chunk_rows(config, layer) * layer.k
        self._device = device

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return COUNTER_BYTES + _C.DequantMatmul.MATMUL_BYTES + self._chunk_bytes

    def run(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor | None,
    ) -> None:
        assert workspace is not None
        self._matmul.run(
            x.data_ptr(),
            weight.qweight.data_ptr(),
            weight.scales.data_ptr(),
            pointer(weight.zeros),
            pointer(bias),
            out.data_ptr(),
            workspace.data_ptr() + COUNTER_BYTES,
            x.shape[0],
            current_stream(self._device),
        )


class DequantMatmulFamily:
    """Tunable: `chunk_mb`, MiB of dequantised weights at once; a chunk that fits the L2 never leaves it."""

    name = "dequant_matmul"
    kind = "cuda"

    def source_hash(self) -> str:
        return source_hash(_SOURCE)

    def reject(self, config: Config, problem: Problem, device: Device) -> str | None:  # noqa: ARG002
        if tuple(config) != ("chunk_mb",):
            return "its only tunable is chunk_mb"
        if config["chunk_mb"] not in _CHUNK_MB:
            return f"chunk_mb={config['chunk_mb']} is not one of {', '.join(map(str, _CHUNK_MB))}"
        return reject_layer(problem.layer)

    def space(self, problem: Problem, device: Device) -> list[Config]:  # noqa: ARG002
        if problem.m < _FEWEST_TOKENS or reject_layer(problem.layer) is not None:
            return []
        sizes: dict[int, Config] = {}
        for chunk_mb in _CHUNK_MB:
            config = Config.of("dequant_matmul", chunk_mb=chunk_mb)
            sizes.setdefault(_chunk_rows(config, problem.layer), config)
        return list(sizes.values())

    def estimate(self, config: Config, problem: Problem, device: Device) -> float:
        layer, rate = problem.layer, speed(device)
        moved_bytes = layer.weight_bytes + _WRITE * 2 * layer.n * layer.k
        chunks = parts(layer.n, _chunk_rows(config, layer))
        multiply_us = sum(_multiply_us(rows, problem, device) for _, rows in chunks)
        return _CALL_US + moved_bytes / rate.read_bytes + multiply_us

    def default(self, problem: Problem, device: Device) -> Config | None:
        return quickest(self, self.space(problem, device), problem, device)

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit:  # noqa: ARG002
        return Unit(_SOURCE, layer_defines(layer), device.arch)

    def launches(self, config: Config, problem: Problem, device: Device) -> tuple[Launch, ...]:  # noqa: ARG002
        return _launches(config, problem.layer)

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> _DequantMatmulPlan:
        assert cubin is not None
        return _DequantMatmulPlan(config, layer, device, cubin)


FAMILY = DequantMatmulFamily()
