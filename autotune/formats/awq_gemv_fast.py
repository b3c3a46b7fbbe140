"""The layout of llm-awq v2 and of AutoAWQ "gemv_fast".

`qweight` int16 [n/4, k]. Of row r of 4 and, within 64 of k, column 32 h + 8 e + 2 b + o, the value is nibble
64 r + 32 h + 8 b + 4 o + e of the 256 that the 64 words hold. `scales` and `scaled_zeros` [8 width, n] in a
16-bit float; the groups come first. AutoAWQ calls `scaled_zeros` `qzeros`.

`scaled_zeros` are -s z, rounded: w = q s + scaled_zeros. z is recovered by rounding to a whole number, which
is right wherever z is one of 0..15, because the rounding of s z moves it by at most 15 units of roundoff;
w = (q - z) s then has one rounding less. Zeros that are no whole numbers are an error.
"""

from __future__ import annotations

import torch

from autotune.formats.awq_gemv import padded_words
from autotune.formats.scheme import TensorScheme, Unpacked
from autotune.formats.tensors import (
    Tensors,
    expect,
    expect_scales,
    in_dtype,
    layer_with,
    matrix,
    split_pairs,
    symmetric_or,
    tensor,
)
from autotune.layouts import QuantizedWeight
from autotune.schemes.int4 import SYMMETRIC_ZERO
from autotune.values.errors import FormatError
from autotune.values.layer import Layer

NAMES: tuple[str, ...] = ("qweight", "scales", "scaled_zeros", "qzeros")


def layer_of(tensors: Tensors, scheme: TensorScheme) -> Layer:
    """The layer that the tensors describe, from their shapes and dtypes alone."""
    qweight = matrix(tensors, "qweight", torch.int16, "[n/4, k]")
    layer = layer_with(tensors, scheme, qweight.shape[0] * 4, qweight.shape[1])
    if layer.k % 64:
        raise FormatError(f"k={layer.k} is not a multiple of 64, of which the layout has blocks")
    scales, rows = tensors["scales"], 8 * padded_words(layer)
    expect_scales("scales", scales, layer, rows, layer.n)
    expect("scaled_zeros", _scaled_zeros(tensors), scales.dtype, rows, layer.n)
    return layer


def read(tensors: Tensors, scheme: TensorScheme) -> Unpacked:
    """The linear of the tensors, on their device; its zeros are whole numbers.

    Raises:
        FormatError: a zero is none of 0..15.
    """
    layer = layer_of(tensors, scheme)
    scales = tensors["scales"][: layer.groups]
    zeros = symmetric_or(_zeros(scales, _scaled_zeros(tensors)[: layer.groups]), layer, SYMMETRIC_ZERO)
    return Unpacked(
        QuantizedWeight(layer, _unpack(tensors["qweight"], layer), in_dtype(scales, layer), zeros)
    )


def _unpack(qweight: torch.Tensor, layer: Layer) -> torch.Tensor:
    """uint8 [n, k]."""
    n4, k64 = layer.n // 4, layer.k // 64
    # Words are permuted before nibbles: [n4, r, k64, h, b, o], whose bytes and their nibbles are e.
    words = qweight.reshape(n4, k64, 4, 2, 4, 2).permute(0, 2, 1, 3, 4, 5).contiguous()
    pairs = words.view(-1).view(torch.uint8).view(n4, 4, k64, 2, 4, 2, 2)
    return split_pairs(pairs.permute(0, 1, 2, 3, 6, 4, 5), 5).view(layer.n, layer.k)


def _scaled_zeros(tensors: Tensors) -> torch.Tensor:
    return tensor(tensors, "qzeros" if "qzeros" in tensors else "scaled_zeros")


def _zeros(scales: torch.Tensor, scaled_zeros: torch.Tensor) -> torch.Tensor:
    # A scale of zero has no zero: any one of them gives the weight 0.
    exact = torch.where(scales == 0, scaled_zeros.float(), -scaled_zeros.float() / scales.float())
    zeros = exact.round()
    off = ((exact - zeros).abs() > 8 * torch.finfo(scales.dtype).eps) | (zeros < 0) | (zeros > 15)
    # NaN compares as false, and is refused with the scales.
    bad = int(off.sum())
    if bad:
        example = float(exact[off][0])
        raise FormatError(f"{bad} of {zeros.numel()} zeros are none of 0..15: the first is {example:.4g}")
    return zeros.nan_to_num().to(torch.uint8).contiguous()
