"""Family `dequant_matmul`: dequantise some rows into a reused workspace, then cuBLASLt's matmul on them.

cuBLASLt is called by itself, because torch's matmul and the views that it takes cost the host half as much
again.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from autotune import _C
from autotune.families.estimates import speed
from autotune.families.gemm import CudaFamily, Geometry, ceil_div, current_stream, parts, pointer
from autotune.families.protocol import Launch
from autotune.families.workspace import COUNTER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from autotune.layouts import PackedWeight
    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem

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


class DequantGeometry(Geometry):
    """The launches are those of the chunks of n, whatever the number of tokens."""

    def __init__(self, config: Config, layer: Layer, device: Device) -> None:
        super().__init__(config, layer, device)
        # Whole blocks of 64 rows that fit the chunk, at least one block.
        fitting = (config["chunk_mb"] << 20) // (2 * layer.k) // 64 * 64
        self.chunk_rows = min(layer.n, max(64, fitting))
        self.chunks = parts(layer.n, self.chunk_rows)

    def launch(self, tokens: int) -> Launch:  # noqa: ARG002
        """That of the first chunk."""
        return self._launch(*self.chunks[0])

    def launches(self, m: int) -> tuple[Launch, ...]:  # noqa: ARG002
        return tuple(self._launch(*chunk) for chunk in self.chunks)

    def _launch(self, start: int, rows: int) -> Launch:
        grid = (ceil_div(self.layer.k, 64), ceil_div(rows, 64), 1)
        return Launch(grid, 128, 0, False, (start, rows))

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return COUNTER_BYTES + int(_C.DequantMatmul.MATMUL_BYTES) + 2 * self.chunk_rows * self.layer.k

    def estimate(self, m: int) -> float:
        layer, rate = self.layer, speed(self.device)
        moved_bytes = layer.weight_bytes + _WRITE * 2 * layer.n * layer.k
        multiply_us = sum(self._multiply_us(rows, m) for _, rows in self.chunks)
        return _CALL_US + moved_bytes / rate.read_bytes + multiply_us

    def _multiply_us(self, rows: int, m: int) -> float:
        """How long cuBLAS takes for so many rows of n."""
        rate = speed(self.device).dense_operations

        def tiled_us(tile_n: int, tile_m: int) -> float:
            waves = ceil_div(ceil_div(rows, tile_n) * ceil_div(m, tile_m), self.device.cores)
            return waves * (_WAVE_US + 2 * self.layer.k * tile_n * tile_m / rate)

        return min(tiled_us(*tile) for tile in _TILES)


class DequantMatmulPlan:
    """The launches of the kernel and the products between them, which C++ enqueues in one call."""

    def __init__(self, geometry: DequantGeometry, kernel: str, cubin: bytes) -> None:
        layer, index = geometry.layer, geometry.device.index
        launches = geometry.launches(1)
        chunks = [
            (each.grid, each.threads, each.shared_bytes, each.programmatic, *chunk)
            for each, chunk in zip(launches, geometry.chunks, strict=True)
        ]
        bf16 = layer.dtype == "bf16"
        self._matmul = _C.DequantMatmul(cubin, kernel, index, layer.n, layer.k, bf16, chunks)
        self._workspace_bytes, self._index = geometry.workspace_bytes(1), index

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return self._workspace_bytes

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
            current_stream(self._index),
        )


class DequantMatmulFamily(CudaFamily):
    """Tunable: `chunk_mb`, MiB of dequantised weights at once; a chunk that fits the L2 never leaves it."""

    name = "dequant_matmul"
    deterministic = True
    tunables = MappingProxyType({"chunk_mb": _CHUNK_MB})
    source = "dequant_matmul/dequant_matmul.cu"
    kernel = "dequantize"
    geometry = DequantGeometry

    def candidates(self, problem: Problem, device: Device) -> Iterable[Config]:
        """One for each size of chunk that differs for the layer."""
        if problem.m < _FEWEST_TOKENS:
            return ()
        sizes: dict[int, Config] = {}
        for config in map(self.config, _CHUNK_MB):
            sizes.setdefault(DequantGeometry(config, problem.layer, device).chunk_rows, config)
        return sizes.values()

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> DequantMatmulPlan:
        assert cubin is not None
        return DequantMatmulPlan(DequantGeometry(config, layer, device), self.kernel, cubin)


FAMILY = DequantMatmulFamily()
