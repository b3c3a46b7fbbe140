"""compressed-tensors linears after their first forward, which leaves a dense weight beside its scales.

`weight` [n, k] in a float dtype is (q - zero) * scale, rounded once; `weight_scale` [n, k/group_size];
`weight_zero_point` int8 [n, k/group_size], signed, absent or all 0 for symmetric weights. q - zero is
recovered by rounding to a whole number, which is right because the rounding of the product moves it by at
most 15 units of roundoff. A weight that is none of these products, as one that is quantized at each call, is
an error. No checkpoint is in this format.
"""

from __future__ import annotations

import torch

from autotune.formats.scheme import TensorScheme, Unpacked
from autotune.formats.tensors import Tensors, expect, expect_scales, in_dtype, layer_with, tensor
from autotune.layouts import QuantizedWeight
from autotune.schemes.int4 import SYMMETRIC_ZERO
from autotune.values.errors import FormatError
from autotune.values.layer import Layer

NAMES: tuple[str, ...] = ("weight", "weight_scale", "weight_zero_point")

_ROWS = 1024
"""Rows that are in fp32 at a time."""


def layer_of(tensors: Tensors, scheme: TensorScheme) -> Layer:
    """The layer that the tensors describe, from their shapes and dtypes alone."""
    weight = tensor(tensors, "weight")
    if weight.dim() != 2:
        raise FormatError(f"weight has {weight.dim()} dimensions, expected [n, k]")
    layer = layer_with(tensors, scheme, weight.shape[0], weight.shape[1], "weight_scale")
    expect_scales("weight_scale", tensors["weight_scale"], layer, layer.n, layer.groups)
    if layer.zero_point:
        expect("weight_zero_point", tensor(tensors, "weight_zero_point"), torch.int8, layer.n, layer.groups)
    return layer


def read(tensors: Tensors, scheme: TensorScheme) -> Unpacked:
    """The linear of the tensors, on their device.

    Raises:
        FormatError: the weight is not made of 4-bit numbers and its scales.
    """
    layer = layer_of(tensors, scheme)
    scale = tensors["weight_scale"]
    zeros = torch.full(scale.shape, SYMMETRIC_ZERO, dtype=torch.uint8, device=scale.device)
    if layer.zero_point:
        zeros = (tensors["weight_zero_point"] + SYMMETRIC_ZERO).to(torch.uint8)
    q = torch.empty((layer.n, layer.k), dtype=torch.uint8, device=scale.device)
    for start in range(0, layer.n, _ROWS):
        rows = slice(start, start + _ROWS)
        q[rows] = _recovered(tensors["weight"][rows], scale[rows], zeros[rows], layer)
    kept = zeros.T.contiguous() if layer.zero_point else None
    return Unpacked(QuantizedWeight(layer, q, in_dtype(scale.T, layer), kept))


def _recovered(weight: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor, layer: Layer) -> torch.Tensor:
    """q of some rows; a scale of 0 has made every weight 0, which q = zero gives again."""
    grouped = weight.reshape(-1, layer.groups, layer.group_size).float()
    exact = torch.where(scale.unsqueeze(-1) == 0, grouped, grouped / scale.unsqueeze(-1).float())
    q = exact.round()
    roundoff = 8 * torch.finfo(weight.dtype).eps
    off = ~((exact - q).abs() <= roundoff)
    q += zeros.unsqueeze(-1)
    bad = int((off | (q < 0) | (q > 15)).sum())
    if bad:
        raise FormatError(f"{bad} of {q.numel()} weights are no 4-bit number times their scale")
    return q.view(weight.shape).to(torch.uint8)
