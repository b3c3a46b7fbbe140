"""The compressed-tensors "pack-quantized" layout.

`weight_packed` int32 [n, k/8] holds eight columns of k in a word, in order, as signed numbers plus 8;
`weight_scale` [n, k/group_size]; `weight_zero_point` int32 [n/8, k/group_size] holds eight rows of n in a
word, plus 8 likewise, so that the offsets cancel; symmetric weights have none. `weight_shape` is [n, k].
`weight_g_idx` [k] is the group of each column where the groups were mixed, -1 where nobody filled it in.
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
    order_of,
    tensor,
)
from autotune.layouts import QuantizedWeight
from autotune.values.errors import FormatError
from autotune.values.layer import Layer

NAMES: tuple[str, ...] = (
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
)


def layer_of(tensors: Tensors, scheme: TensorScheme) -> Layer:
    """The layer that the tensors describe, from their shapes and dtypes alone."""
    packed = matrix(tensors, "weight_packed", torch.int32, "[n, k/8]")
    layer = layer_with(tensors, scheme, packed.shape[0], packed.shape[1] * 8, "weight_scale")
    expect_scales("weight_scale", tensors["weight_scale"], layer, layer.n, layer.groups)
    if layer.zero_point:
        zeros = tensor(tensors, "weight_zero_point")
        expect("weight_zero_point", zeros, torch.int32, layer.n // 8, layer.groups)
    return layer


def read(tensors: Tensors, scheme: TensorScheme) -> Unpacked:
    """The linear of the tensors, exact, on their device, its columns sorted by group."""
    layer = layer_of(tensors, scheme)
    shape = tensors.get("weight_shape")
    if shape is not None and shape.tolist() != [layer.n, layer.k]:
        raise FormatError(f"weight_shape is {shape.tolist()}, but weight_packed says {[layer.n, layer.k]}")
    g_idx = tensors.get("weight_g_idx")
    if g_idx is not None and bool((g_idx == -1).all()):
        g_idx = None
    perm = order_of(g_idx, layer, "weight_g_idx")
    q = nibbles(tensors["weight_packed"])
    if perm is not None:
        q = q.index_select(1, perm)
    zeros = nibbles(tensors["weight_zero_point"].T) if layer.zero_point else None
    return Unpacked(QuantizedWeight(layer, q, in_dtype(tensors["weight_scale"].T, layer), zeros), perm)
