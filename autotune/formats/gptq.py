"""The GPTQ checkpoint layout, v1 and v2.

`qweight` int32 [k/8, n] holds eight rows of k in a word, in order; `qzeros` int32 [k/group_size, n/8] eight
columns of n; `scales` [k/group_size, n]; `g_idx` int32 [k] is the group of each column of x. Where `desc_act`
mixed the groups, the columns are sorted by group and x is gathered alike. Symmetric checkpoints store nibbles
of 7 or 8, which both mean 8.

v2 stores z, v1 stores z - 1. What v1 stores for a zero of 0 depends on its writer. GPTQModel subtracts
0x11111111 from the packed word, and auto-round adds up shifted values, -1 among them: both borrow from the
nibbles above, and adding 0x11111111 to the word, modulo 2^32, gives all of them back (`by_word`). AutoGPTQ
and GPTQ-for-LLaMa write 32 bits of -1 over the nibbles above, whose zeros are lost; their kernels, and this
reader, add 1 to each nibble by itself, modulo 16. auto-round up to 0.5 lost them in the same way.
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
    symmetric_or,
    tensor,
)
from autotune.layouts import QuantizedWeight
from autotune.values.errors import FormatError
from autotune.values.layer import Layer

NAMES: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")
_ONES = 0x11111111


def layer_of(tensors: Tensors, scheme: TensorScheme) -> Layer:
    """The layer that the tensors describe, from their shapes and dtypes alone."""
    qweight = matrix(tensors, "qweight", torch.int32, "[k/8, n]")
    layer = layer_with(tensors, scheme, qweight.shape[1], qweight.shape[0] * 8)
    expect_scales("scales", tensors["scales"], layer, layer.groups, layer.n)
    expect("qzeros", tensor(tensors, "qzeros"), torch.int32, layer.groups, layer.n // 8)
    if scheme.desc_act and "g_idx" not in tensors:
        raise FormatError("has no tensor g_idx, but desc_act is true")
    return layer


def read(tensors: Tensors, scheme: TensorScheme) -> Unpacked:
    """The linear of the tensors, exact, on their device, its columns sorted by group."""
    layer = layer_of(tensors, scheme)
    perm = order_of(tensors.get("g_idx"), layer, "g_idx")
    # Words are transposed, not nibbles: an eighth of the elements.
    q = nibbles(tensors["qweight"].T)
    if perm is not None:
        q = q.index_select(1, perm)
    zeros = _zeros(tensors["qzeros"], layer, scheme)
    return Unpacked(QuantizedWeight(layer, q, in_dtype(tensors["scales"], layer), zeros), perm)


def _zeros(qzeros: torch.Tensor, layer: Layer, scheme: TensorScheme) -> torch.Tensor | None:
    if not layer.zero_point:
        return symmetric_or(nibbles(qzeros), layer, 7, 8)
    zeros = nibbles(qzeros + _ONES if scheme.by_word else qzeros)
    if scheme.minus_one and not scheme.by_word:
        zeros = (zeros + 1) & 15
    if scheme.zero_point is None:
        _expect_meant(zeros, scheme)
    return zeros


def _expect_meant(zeros: torch.Tensor, scheme: TensorScheme) -> None:
    """FormatError where all zeros are what the 8 of symmetric weights becomes in the other version."""
    stored, read_as, version, other = (8, 9, "v1", "gptq_v2") if scheme.minus_one else (7, 7, "v2", "gptq")
    if bool((zeros == read_as).all()):
        raise FormatError(
            f"every zero is stored as {stored}, which GPTQ {version} reads as {read_as}, and"
            ' quantization_config does not say sym; add "sym": true if the weights are symmetric, or correct'
            f" checkpoint_format to {other}"
        )
