"""The GPTQ checkpoint layout, v1 and v2.

`qweight` int32 [k/8, n] holds eight rows of k in a word, in order; `qzeros` int32 [k/group_size, n/8] eight
columns of n; `scales` [k/group_size, n]; `g_idx` int32 [k] is the group of each column of x. v1 stores z - 1
in each nibble, v2 stores z. Where `desc_act` mixed the groups, the columns are sorted by group and x is
gathered alike. Symmetric checkpoints store nibbles of 7 or 8, which both mean 8.
"""

from __future__ import annotations

import torch

from autotune.errors import FormatError
from autotune.formats.scheme import Scheme, Unpacked
from autotune.formats.tensors import (
    Tensors,
    expect,
    expect_scales,
    in_dtype,
    layer_with,
    matrix,
    nibbles,
    order_of,
    symmetric_or,
    tensor,
)
from autotune.layer import Layer
from autotune.packing import QuantizedWeight

NAMES: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")


def layer_of(tensors: Tensors, scheme: Scheme) -> Layer:
    """The layer that the tensors describe, from their shapes and dtypes alone."""
    qweight = matrix(tensors, "qweight", torch.int32, "[k/8, n]")
    layer = layer_with(tensors, scheme, qweight.shape[1], qweight.shape[0] * 8)
    expect_scales("scales", tensors["scales"], layer, layer.groups, layer.n)
    expect("qzeros", tensor(tensors, "qzeros"), torch.int32, layer.groups, layer.n // 8)
    if scheme.desc_act and "g_idx" not in tensors:
        raise FormatError("has no tensor g_idx, but desc_act is true")
    return layer


def read(tensors: Tensors, scheme: Scheme) -> Unpacked:
    """The linear of the tensors, exact, on their device, its columns sorted by group."""
    layer = layer_of(tensors, scheme)
    perm = order_of(tensors.get("g_idx"), layer, "g_idx")
    # Words are transposed, not nibbles: an eighth of the elements.
    q = nibbles(tensors["qweight"].T)
    if perm is not None:
        q = q.index_select(1, perm)
    zeros = _zeros(tensors["qzeros"], layer, scheme)
    return Unpacked(QuantizedWeight(layer, q, in_dtype(tensors["scales"], layer), zeros), perm)


def _zeros(qzeros: torch.Tensor, layer: Layer, scheme: Scheme) -> torch.Tensor | None:
    zeros = symmetric_or(nibbles(qzeros), layer, 7, 8)
    return (zeros + 1) & 15 if zeros is not None and scheme.minus_one else zeros
