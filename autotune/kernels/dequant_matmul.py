"""Family `dequant_matmul`: dequantise some rows into a reused workspace, then cuBLASLt's matmul on them.

cuBLASLt is called by itself, because torch's matmul and the views that it takes cost the host half as much
again.
"""

from __future__ import annotations

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
from autotune.kernels.workspace import COUNTER_BYTES

if TYPE_CHECKING:
    import torch

    from autotune.device import Device
    from autotune.layer import Layer, Problem
    from autotune.packing import PackedWeight

_SOURCE = "dequant.cu"
_CHUNK_MB = (256, 64)
_FEWEST_TOKENS = 64
_DEFAULT_TOKENS = 256
# On sm_90, family `wgmma` has the default up to here for weights that do not fit the L2 once dequantised,
# and for smaller ones with as many fewer tokens. Between wgmma's default and the best of this family that was
# right for 19 of 20 problems of 256 and 512 tokens on an H100 (not 4096x4096 with 512, 16 % slower), and for
# all of 10 on an H200. Some defaults of wgmma are faster since: on an H100 5120x5120 and 7168x2048 with 512
# lose 9 %.
_WGMMA_TOKENS = 512


def _is_for_wgmma(problem: Problem, device: Device, most_tokens: int) -> bool:
    """Whether up to so many tokens of the layer are left to family `wgmma`."""
    dequantised_bytes = 2 * problem.layer.n * problem.layer.k
    large = dequantised_bytes * _WGMMA_TOKENS > device.l2_bytes * problem.m
    return device.arch == "sm_90" and problem.m <= most_tokens and large


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

    def space(self, problem: Problem, device: Device) -> list[Config]:
        if problem.m < _FEWEST_TOKENS or reject_layer(problem.layer) is not None:
            return []
        # In a race at 256 tokens it may win, as for 6144x4096 by 5 %, but it takes longer for most numbers of
        # tokens below: cuBLAS' kernels are slow where their tiles reach past the last token.
        if _is_for_wgmma(problem, device, _WGMMA_TOKENS - 1):
            return []
        sizes: dict[int, Config] = {}
        for chunk_mb in _CHUNK_MB:
            config = Config.of("dequant_matmul", chunk_mb=chunk_mb)
            sizes.setdefault(_chunk_rows(config, problem.layer), config)
        return list(sizes.values())

    def default(self, problem: Problem, device: Device) -> Config | None:
        if problem.m < _DEFAULT_TOKENS or reject_layer(problem.layer) is not None:
            return None
        if _is_for_wgmma(problem, device, _WGMMA_TOKENS):
            return None
        return Config.of("dequant_matmul", chunk_mb=_CHUNK_MB[0])

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit:  # noqa: ARG002
        return Unit(_SOURCE, layer_defines(layer), device.arch)

    def launches(self, config: Config, problem: Problem, device: Device) -> tuple[Launch, ...]:  # noqa: ARG002
        return _launches(config, problem.layer)

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> _DequantMatmulPlan:
        assert cubin is not None
        return _DequantMatmulPlan(config, layer, device, cubin)


FAMILY = DequantMatmulFamily()
