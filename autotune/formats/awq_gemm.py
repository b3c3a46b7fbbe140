"""The AutoAWQ "gemm" checkpoint layout.

`qweight` int32 [k, n/8] and `qzeros` int32 [k/group_size, n/8] hold eight columns of n in a word: nibble i of
word c is column 8 c + (0, 2, 4, 6, 1, 3, 5, 7)[i]. `scales` [k/group_size, n]. Zeros are stored as they are.
"""

from __future__ import annotations

import torch

from autotune.formats.scheme import TensorScheme, Unpacked
from autotune.formats.tensors import (
    Tensors,
    expect,
    expect_scales,
    group_size_of,
    in_dtype,
    layer_with,
    matrix,
    symmetric_or,
    tensor,
)
from autotune.layouts import QuantizedWeight
from autotune.schemes.int4 import SYMMETRIC_ZERO
from autotune.values.layer import Layer

NAMES: tuple[str, ...] = ("qweight", "qzeros", "scales")


def layer_of(tensors: Tensors, scheme: TensorScheme) -> Layer:
    """The layer that the tensors describe, from their shapes and dtypes alone."""
    qweight = matrix(tensors, "qweight", torch.int32, "[k, n/8]")
    layer = layer_with(tensors, scheme, qweight.shape[1] * 8, qweight.shape[0])
    expect_scales("scales", tensors["scales"], layer, layer.groups, layer.n)
    expect("qzeros", tensor(tensors, "qzeros"), torch.int32, layer.groups, layer.n // 8)
    return layer


def read(tensors: Tensors, scheme: TensorScheme) -> Unpacked:
    """The linear of the tensors, exact, on their device."""
    layer = layer_of(tensors, scheme)
    # Words are transposed, not nibbles: a fourth of the elements, and the unpacking then streams.
    q = _unpack(tensors["qweight"].T.contiguous()).view(layer.n, layer.k)
    zeros = symmetric_or(columns(tensors["qzeros"]), layer, SYMMETRIC_ZERO)
    return Unpacked(QuantizedWeight(layer, q, in_dtype(tensors["scales"], layer), zeros))


def columns(words: torch.Tensor) -> torch.Tensor:
    """int32 [rows, n/8] to uint8 [rows, n]."""
    rows, count = words.shape
    return _unpack(words.T.contiguous()).view(count * 8, rows).T.contiguous()


def to_quantized(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> QuantizedWeight:
    """The weight of the tensors, with the group size that their shapes mean.

    Raises:
        FormatError: a shape or dtype is not what the layout promises, or a scale is not finite.
        LayerError: the numbers fit together but no kernel takes them.
    """
    tensors = {"qweight": qweight, "qzeros": qzeros, "scales": scales}
    k = matrix(tensors, "qweight", torch.int32, "[k, n/8]").shape[0]
    return read(tensors, TensorScheme("awq_gemm", group_size_of("scales", scales, 0, k))).weight


def from_quantized(weight: QuantizedWeight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qweight, qzeros and scales of a canonical weight; without zeros, qzeros hold 8 everywhere."""
    layer = weight.layer
    zeros = weight.zeros
    if zeros is None:
        shape = (layer.groups, layer.n)
        zeros = torch.full(shape, SYMMETRIC_ZERO, dtype=torch.uint8, device=weight.q.device)
    return _pack(weight.q).T.contiguous(), _pack(zeros.T).T.contiguous(), weight.scales


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """int32 [n/8, rows] to uint8 [n/8, 8, rows], columns of n in their natural order."""
    count, rows = words.shape
    # Column 8 c + 4 pair + 2 high + odd lies in byte 2 odd + pair of its word, in the low or high nibble.
    source = words.unsqueeze(-1).view(torch.uint8).view(count, rows, 2, 2).permute(0, 3, 2, 1)
    columns = torch.empty((count, 2, 2, 2, rows), dtype=torch.uint8, device=words.device)
    torch.bitwise_and(source, 15, out=columns[:, :, 0])
    torch.bitwise_right_shift(source, 4, out=columns[:, :, 1])
    return columns


def _pack(columns: torch.Tensor) -> torch.Tensor:
    """uint8 [n, rows] to int32 [n/8, rows], the inverse of `_unpack`."""
    rows = columns.shape[1]
    split = columns.reshape(-1, 2, 2, 2, rows)
    packed = torch.empty((split.shape[0], rows, 2, 2), dtype=torch.uint8, device=columns.device)
    torch.bitwise_or(split[:, :, 0], split[:, :, 1] << 4, out=packed.permute(0, 3, 2, 1))
    return packed.view(split.shape[0], rows, 4).view(torch.int32).squeeze(-1)
