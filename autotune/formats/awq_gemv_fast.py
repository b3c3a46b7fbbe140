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

from autotune.errors import FormatError
from autotune.formats.awq_gemv import padded_words
from autotune.formats.scheme import Scheme, Unpacked
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
from autotune.layer import Layer
from autotune.packing import QuantizedWeight
from autotune.packing.quantized import SYMMETRIC_ZERO

NAMES: tuple[str, ...] = ("qweight", "scales", "scaled_zeros", "qzeros")


def layer_of(tensors: Tensors, scheme: Scheme) -> Layer:
    """The layer that the tensors describe, from their shapes and dtypes alone."""
    qweight = matrix(tensors, "qweight", torch.int16, "[n/4, k]")
    layer = layer_with(tensors, scheme, qweight.shape[0] * 4, qweight.shape[1])
    if layer.k % 64:
        raise FormatError(f"k={layer.k} is not a multiple of 64, of which the layout has blocks")
    scales, rows = tensors["scales"], 8 * padded_words(layer)
    expect_scales("scales", scales, layer, rows, layer.n)
    expect("scaled_zeros", _scaled_zeros(tensors), scales.dtype, rows, layer.n)
    return layer


def read(tensors: Tensors, scheme: Scheme) -> Unpacked:
    """The linear of the tensors, on their device; its zeros are whole numbers.

    Raises:
        FormatError: a zero is none of 0..15.
    """
    layer = layer_of(tensors, scheme)
    scales = tensors["scales"][: layer.groups]
    zeros = symmetric_or(_zeros(scales, _scaled_zeros(tensors)[: layer.groups]), layer, SYMMETRIC_ZERO)
    values = nibbles(tensors["qweight"]).view(layer.n // 4, layer.k // 64, 4, 2, 4, 2, 4)
    q = values.permute(0, 2, 1, 3, 6, 4, 5).reshape(layer.n, layer.k).contiguous()
    return Unpacked(QuantizedWeight(layer, q, in_dtype(scales, layer), zeros))


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
