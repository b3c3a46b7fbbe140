"""The AutoAWQ "gemv" checkpoint layout.

`qweight` int32 [n, k/8] and `qzeros` int32 [n, width] hold eight columns in a word, in order, zeros as they
are; `scales` [n, 8 width]. The groups come first; width is padded, so it does not tell their number.
"""

from __future__ import annotations

import torch

from autotune.formats.scheme import TensorScheme, Unpacked
from autotune.formats.tensors import (
    Tensors,
    expect,
    expect_scales,
    in_dtype,
    layer_with,
    matrix,
    nibbles,
    symmetric_or,
    tensor,
)
from autotune.layouts import QuantizedWeight
from autotune.schemes.int4 import SYMMETRIC_ZERO
from autotune.values.layer import Layer

NAMES: tuple[str, ...] = ("qweight", "qzeros", "scales")

_LEAST_WIDTH = {32: 4, 64: 2}
"""The words of zeros are a multiple of this for small groups, of 1 for others."""


def layer_of(tensors: Tensors, scheme: TensorScheme) -> Layer:
    """The layer that the tensors describe, from their shapes and dtypes alone."""
    qweight = matrix(tensors, "qweight", torch.int32, "[n, k/8]")
    layer = layer_with(tensors, scheme, qweight.shape[0], qweight.shape[1] * 8)
    width = padded_words(layer)
    expect_scales("scales", tensors["scales"], layer, layer.n, 8 * width)
    expect("qzeros", tensor(tensors, "qzeros"), torch.int32, layer.n, width)
    return layer


def read(tensors: Tensors, scheme: TensorScheme) -> Unpacked:
    """The linear of the tensors, exact, on their device."""
    layer = layer_of(tensors, scheme)
    zeros = nibbles(tensors["qzeros"])[:, : layer.groups].T.contiguous()
    scales = in_dtype(tensors["scales"][:, : layer.groups].T, layer)
    q = nibbles(tensors["qweight"])
    return Unpacked(QuantizedWeight(layer, q, scales, symmetric_or(zeros, layer, SYMMETRIC_ZERO)))


def padded_words(layer: Layer) -> int:
    """Words of eight groups that cover the layer's, padded as the layout wants."""
    least = _LEAST_WIDTH.get(layer.group_size, 1)
    return -(-layer.groups // (8 * least)) * least
