"""What the formats share: checks of tensors that name the values, nibbles, and the order of groups."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from autotune.formats.scheme import TensorScheme
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.errors import FormatError
from autotune.values.layer import Layer

Tensors = Mapping[str, torch.Tensor]

_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def tensor(tensors: Tensors, name: str) -> torch.Tensor:
    """The tensor of that name; FormatError when there is none."""
    found = tensors.get(name)
    if found is None:
        raise FormatError(f"has no tensor {name}; found {', '.join(sorted(tensors)) or 'none'}")
    return found


def matrix(tensors: Tensors, name: str, dtype: torch.dtype, meaning: str) -> torch.Tensor:
    """The tensor of that name, which has two dimensions: `meaning` tells them to the reader of the error."""
    found = tensor(tensors, name)
    if found.dim() != 2 or found.dtype != dtype or not found.numel():
        raise FormatError(f"{name} is {describe(found)}, expected {dtype} {meaning}")
    return found


def expect(name: str, found: torch.Tensor, dtype: torch.dtype, *shape: int) -> None:
    """FormatError unless the tensor has that dtype and shape."""
    if found.dtype != dtype or tuple(found.shape) != shape:
        raise FormatError(f"{name} is {describe(found)}, expected {dtype} {list(shape)}")


def layer_with(tensors: Tensors, scheme: TensorScheme, n: int, k: int, scales: str = "scales") -> Layer:
    """The layer of n and k, with the scheme's group size and zeros; its dtype is the scheme's or the scales'.

    Raises:
        FormatError: the dtype is none that kernels compute in.
        LayerError: no kernel takes the numbers, or group_size does not divide k.
    """
    stored = tensor(tensors, scales)
    if stored.dtype not in _DTYPE_NAMES:
        known = ", ".join(str(dtype) for dtype in _DTYPE_NAMES)
        raise FormatError(f"{scales} are {describe(stored)}, expected one of {known}")
    return scheme.layer(n, k, _DTYPE_NAMES[scheme.dtype or stored.dtype])


def expect_scales(name: str, found: torch.Tensor, layer: Layer, *shape: int) -> None:
    """FormatError unless the scales have the shape that the layer gives them."""
    if tuple(found.shape) != shape:
        raise FormatError(f"{name} are {describe(found)}, expected {list(shape)} for {layer}")


def group_size_of(name: str, scales: torch.Tensor, dim: int, k: int) -> int:
    """The group size that scales with their groups along `dim` mean; FormatError unless they divide k."""
    groups = scales.shape[dim] if scales.dim() == 2 else 0
    if groups < 1 or k % groups:
        raise FormatError(f"{name} are {describe(scales)}, whose {groups} groups do not divide k={k}")
    return k // groups


def in_dtype(scales: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Scales in the layer's dtype, contiguous."""
    return scales.to(TORCH_DTYPES[layer.dtype]).contiguous()


def nibbles(words: torch.Tensor) -> torch.Tensor:
    """int32 or int16 [rows, words] to uint8 [rows, values], lowest nibble first."""
    # Flat first: a dimension of size 1 may have any stride, which a view in bytes does not take.
    pairs = words.contiguous().view(-1).view(torch.uint8)
    return split_pairs(pairs, 1).view(words.shape[0], -1)


def split_pairs(pairs: torch.Tensor, dim: int) -> torch.Tensor:
    """uint8, contiguous, with one more dimension `dim` of 2: the low and the high nibble of each byte."""
    shape = pairs.shape
    values = torch.empty((*shape[:dim], 2, *shape[dim:]), dtype=torch.uint8, device=pairs.device)
    torch.bitwise_and(pairs, 15, out=values.select(dim, 0))
    torch.bitwise_right_shift(pairs, 4, out=values.select(dim, 1))
    return values


def symmetric_or(zeros: torch.Tensor, layer: Layer, *allowed: int) -> torch.Tensor | None:
    """The zeros, or None for a symmetric layer, whose stored zeros are all the same one of `allowed`.

    Raises:
        FormatError: the zeros of a symmetric layer differ.
    """
    if layer.zero_point:
        return zeros
    if not any(bool((zeros == value).all()) for value in allowed):
        raise FormatError("the zeros differ from 8, but the checkpoint says that the weights are symmetric")
    return None


def order_of(g_idx: torch.Tensor | None, layer: Layer, name: str) -> torch.Tensor | None:
    """int32 [k], the columns of the weight sorted by their group; None where they are in order.

    Raises:
        FormatError: a group does not have exactly group_size columns.
    """
    if g_idx is None or not g_idx.numel():
        return None
    if tuple(g_idx.shape) != (layer.k,):
        raise FormatError(f"{name} is {describe(g_idx)}, expected [{layer.k}] for {layer}")
    expected = torch.arange(layer.k, dtype=g_idx.dtype, device=g_idx.device) // layer.group_size
    if torch.equal(g_idx, expected):
        return None
    groups, order = torch.sort(g_idx, stable=True)
    if not torch.equal(groups, expected):
        low, high = int(groups[0]), int(groups[-1])
        raise FormatError(
            f"{name} holds groups {low} to {high}, expected 0 to {layer.groups - 1}"
            f" with {layer.group_size} columns each"
        )
    return order.int()


def describe(found: torch.Tensor) -> str:
    """A tensor's dtype and shape, for an error."""
    return f"{found.dtype} {list(found.shape)}"
