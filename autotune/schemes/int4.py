"""The canonical form of a quantized weight, which every checkpoint format turns into."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autotune.values.counts import counted
from autotune.values.errors import FormatError, LayerError
from autotune.values.layer import Layer, shard_layer

TORCH_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SYMMETRIC_ZERO = 8


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """w[n, k] = (q - zero) * scale, one scale and zero per row of n and group of k.

    `q` uint8 [n, k] of 0..15; `scales` [k/group_size, n] in the layer's dtype; `zeros` uint8
    [k/group_size, n] of 0..15, or None when every zero is 8.

    Raises:
        FormatError: a shape or dtype differs from the layer's, or a scale is not finite.
    """

    layer: Layer
    q: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    def __post_init__(self) -> None:
        layer = self.layer
        grouped = (layer.groups, layer.n)
        _expect("q", self.q, (layer.n, layer.k), torch.uint8)
        _expect("scales", self.scales, grouped, TORCH_DTYPES[layer.dtype])
        if (self.zeros is not None) != layer.zero_point:
            raise FormatError(f"zeros are {'given' if self.zeros is not None else 'missing'} for {layer}")
        if self.zeros is not None:
            _expect("zeros", self.zeros, grouped, torch.uint8)
        bad = int((~torch.isfinite(self.scales)).sum())
        if bad:
            raise FormatError(f"{bad} of {self.scales.numel()} scales are NaN or infinite")


def _expect(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise FormatError(f"{name} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}")


def dequantize(weight: QuantizedWeight) -> torch.Tensor:
    """w fp32 [n, k], exact: (q - zero) has 5 bits and the product fits 24."""
    layer = weight.layer
    zeros = weight.zeros if weight.zeros is not None else torch.full_like(weight.scales, SYMMETRIC_ZERO)
    q = weight.q.view(layer.n, layer.groups, layer.group_size).float()
    centred = q - zeros.float().T.unsqueeze(2)
    return (centred * weight.scales.float().T.unsqueeze(2)).view(layer.n, layer.k)


def reference_matmul(weight: QuantizedWeight, x: torch.Tensor) -> torch.Tensor:
    """out fp32 [m, n] = x[m, k] @ dequantize(weight).T in full fp32 precision (no TF32)."""
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return x.float() @ dequantize(weight).T
    finally:
        torch.set_float32_matmul_precision(previous)


def random_weight(layer: Layer, generator: torch.Generator) -> QuantizedWeight:
    """A weight of uniformly random nibbles and zeros, on the generator's device.

    Scales lie within a factor of two of sqrt(1 / k) / 4, so that outputs are near unit size.
    """
    device = generator.device
    grouped = (layer.groups, layer.n)
    q = torch.randint(0, 16, (layer.n, layer.k), dtype=torch.uint8, device=device, generator=generator)
    spread = torch.rand(grouped, device=device, generator=generator) + 0.5
    scales = (spread * layer.k**-0.5 / 4).to(TORCH_DTYPES[layer.dtype])
    zeros = None
    if layer.zero_point:
        zeros = torch.randint(0, 16, grouped, dtype=torch.uint8, device=device, generator=generator)
    return QuantizedWeight(layer, q, scales, zeros)


def shard(weight: QuantizedWeight, dim: int, rank: int, of: int) -> QuantizedWeight:
    """Shard `rank` of `of` along n (dim 0: out is a part) or k (dim 1: x is a part, and outs are summed).

    A weight whose columns are permuted has shards of k that read x[..., perm[start:stop]] of the whole x.

    Raises:
        LayerError: as `shard_layer`, or rank is not one of the shards.
    """
    if not 0 <= rank < of:
        raise LayerError(f"rank={rank} is not one of {counted(of, 'shard')}")
    layer = shard_layer(weight.layer, dim, of)
    return window(weight, layer, *((rank * layer.n, 0) if dim == 0 else (0, rank * layer.k)))


def window(weight: QuantizedWeight, layer: Layer, row: int, column: int) -> QuantizedWeight:
    """What lies under `layer` at that row and column; each of its groups lies in one of the weight's."""
    rows = slice(row, row + layer.n)
    starts = torch.arange(layer.groups, device=weight.q.device) * layer.group_size + column
    groups = starts // weight.layer.group_size
    q = weight.q[rows, column : column + layer.k].contiguous()
    zeros = None if weight.zeros is None else weight.zeros[groups, rows]
    return QuantizedWeight(layer, q, weight.scales[groups, rows], zeros)
