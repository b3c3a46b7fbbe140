"""The layout of the Marlin kernels, as checkpoints and loaded models have it.

`qweight` int32 [k/16, 2 n]: tiles of 16 x 64; in a tile, row 16 j + 8 r + l of n and column 8 u + 2 c + o
of k is nibble 128 l + 32 c + 8 j + 4 o + 2 r + u. `scales` [k/group_size, n]: of every 64 columns, i + 8 j
stands at 8 i + j; with one group of all k, of every 32 columns 8 a + 2 i + o stands at 8 i + 2 a + o.
`qzeros`, where there are some, int32 [k/group_size, n/8]: the former order, then that of AutoAWQ's words.
Without them the weights are symmetric. `B` and `s` are AutoGPTQ's names for `qweight` and `scales`.
"""

from __future__ import annotations

import torch

from autotune.formats import awq_gemm
from autotune.formats.scheme import TensorScheme, Unpacked
from autotune.formats.tensors import (
    Tensors,
    expect,
    expect_scales,
    in_dtype,
    layer_with,
    matrix,
    split_pairs,
    tensor,
)
from autotune.layouts import QuantizedWeight
from autotune.values.errors import FormatError
from autotune.values.layer import Layer

NAMES: tuple[str, ...] = ("qweight", "scales", "qzeros", "B", "s")

_RENAMED = {"B": "qweight", "s": "scales"}


def layer_of(tensors: Tensors, scheme: TensorScheme) -> Layer:
    """The layer that the tensors describe, from their shapes and dtypes alone."""
    tensors = renamed(tensors)
    qweight = matrix(tensors, "qweight", torch.int32, "[k/16, 2 n]")
    layer = layer_with(tensors, scheme, qweight.shape[1] // 2, qweight.shape[0] * 16)
    if layer.n % 64:
        raise FormatError(f"n={layer.n} is not a multiple of 64, of which the layout has tiles")
    expect_scales("scales", tensors["scales"], layer, layer.groups, layer.n)
    if layer.zero_point:
        expect("qzeros", tensor(tensors, "qzeros"), torch.int32, layer.groups, layer.n // 8)
    return layer


def read(tensors: Tensors, scheme: TensorScheme) -> Unpacked:
    """The linear of the tensors, exact, on their device."""
    tensors = renamed(tensors)
    layer = layer_of(tensors, scheme)
    unordered = rows_in_order if layer.groups == 1 else _groups_in_order
    zeros = None
    if layer.zero_point:
        zeros = _groups_in_order(awq_gemm.columns(tensors["qzeros"])).contiguous()
    scales = in_dtype(unordered(tensors["scales"]), layer)
    return Unpacked(QuantizedWeight(layer, _unpack(tensors["qweight"], layer), scales, zeros))


def _unpack(qweight: torch.Tensor, layer: Layer) -> torch.Tensor:
    """uint8 [n, k]."""
    tiles = layer.n // 64, layer.k // 16
    # Words are permuted before nibbles: [n64, j, l, k16, c], whose bytes are [o, r] and nibbles u.
    words = qweight.reshape(tiles[1], tiles[0], 8, 4, 4).permute(1, 4, 2, 0, 3).contiguous()
    pairs = words.view(-1).view(torch.uint8).view(tiles[0], 4, 8, tiles[1], 4, 2, 2)
    return split_pairs(pairs.permute(0, 1, 6, 2, 3, 4, 5), 5).view(layer.n, layer.k)


def rows_in_order(stored: torch.Tensor) -> torch.Tensor:
    """Scales of one group, or a bias that was permuted alike, in the order of n."""
    return stored.reshape(-1, 4, 4, 2).transpose(1, 2).reshape(stored.shape)


def _groups_in_order(stored: torch.Tensor) -> torch.Tensor:
    return stored.reshape(-1, 8, 8).transpose(1, 2).reshape(stored.shape)


def renamed(tensors: Tensors) -> Tensors:
    """The tensors by one of their two names."""
    return {_RENAMED.get(name, name): found for name, found in tensors.items()}
