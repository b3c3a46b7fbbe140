"""A linear's parameters, as vLLM's loaders leave them, as a canonical weight; and others in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from autotune.formats.tensors import describe, in_dtype, nibbles, order_of
from autotune.layouts import QuantizedWeight
from autotune.values.errors import FormatError

if TYPE_CHECKING:
    from autotune.values.layer import Layer


def weight_of(
    layer: Layer,
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    g_idx: torch.Tensor | None,
) -> tuple[QuantizedWeight, torch.Tensor | None]:
    """The weight with its columns in the order of their groups, and that order, int32 [k]; None as they come.

    `q` int32 holds 8 consecutive weights of k a word, lowest nibble first, and `scales` one number per group:
    both with `input_dim` and `output_dim` that say which dimension is k and which is n. `zeros` int32 holds
    8 consecutive rows of n a word. `g_idx` [k] is the group of each column.

    Raises:
        FormatError: a parameter has another shape than the layer asks for, or a scale is not finite.
    """
    columns = nibbles(_by_rows("weights", q, layer.n, layer.k // 8))
    order = order_of(g_idx, layer, "g_idx")
    if order is not None:
        columns = columns.index_select(1, order)
    unpacked = None
    if zeros is not None:
        unpacked = nibbles(_by_rows("zeros", zeros, layer.n // 8, layer.groups).T).contiguous()
    grouped = in_dtype(_by_rows("scales", scales, layer.n, layer.groups).T, layer)
    return QuantizedWeight(layer, columns, grouped, unpacked), order


def replace_parameter(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a plain parameter, which Dynamo takes, in the place of a module's parameter or attribute."""
    delattr(module, name)
    module.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))


def _by_rows(name: str, parameter: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The parameter's data with n as its first dimension."""
    turned = parameter.data if getattr(parameter, "output_dim", 0) == 0 else parameter.data.T
    if tuple(turned.shape) != (rows, columns):
        raise FormatError(f"{name} are {describe(turned)}, expected [{rows}, {columns}]")
    return turned
