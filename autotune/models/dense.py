"""An int4 linear that no kernel takes, as a dense one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from autotune.formats import Tensors, TensorScheme, read
from autotune.layouts import dequantize

_Dims = Mapping[str, Mapping[str, tuple[int, int]]]
_ROWS: _Dims = {
    "awq_gemv": {"qweight": (0, 1), "qzeros": (0, 1), "scales": (0, 1)},
    "compressed_tensors": {"weight_packed": (0, 1), "weight_scale": (0, 1)},
}
"""Of the formats that can hold any n: the dimension along n of each tensor that grows with every row, and how
many rows an element holds. The weight comes first."""

_COLUMNS: _Dims = {
    "awq_gemm": {"qweight": (0, 1)},
    "awq_gemv": {"qweight": (1, 8)},
    "compressed_tensors": {"weight_packed": (1, 8), "weight_g_idx": (0, 1)},
    "gptq": {"qweight": (0, 8), "g_idx": (0, 1)},
}
"""The same of k, which the last group may not fill."""


@dataclass(frozen=True)
class Padded:
    """The tensors of a linear with rows and columns added until formats read it."""

    tensors: Tensors
    rows: int
    columns: int


def padded(tensors: Tensors, scheme: TensorScheme) -> Padded:
    """The tensors with n filled up to a multiple of 8, and k to whole groups; added values mean nothing."""
    group_size = max(scheme.group_size, 1)
    tensors, rows = _grown(tensors, _ROWS.get(scheme.format, {}), 8)
    tensors, columns = _grown(tensors, _COLUMNS.get(scheme.format, {}), group_size)
    if rows or columns:
        tensors = {name: found for name, found in tensors.items() if name != "weight_shape"}
    return Padded(tensors, rows, columns)


def _grown(tensors: Tensors, dims: Mapping[str, tuple[int, int]], multiple: int) -> tuple[Tensors, int]:
    """The tensors with their last row or column repeated, and by how many."""
    name = next(iter(dims), "")
    if name not in tensors:
        return tensors, 0
    dim, each = dims[name]
    added = -(tensors[name].shape[dim] * each) % multiple
    grown = dict(tensors)
    for name, (dim, each) in dims.items():
        if name in tensors and added:
            # Of the groups of columns only the last may lack some.
            last = (
                tensors[name].max(dim, True).values if "g_idx" in name else tensors[name].narrow(dim, -1, 1)
            )
            grown[name] = torch.cat([tensors[name], last.repeat_interleave(added // each, dim)], dim)
    return grown, added


def dense_linear(tensors: Tensors, scheme: TensorScheme, bias: torch.Tensor | None) -> torch.nn.Linear:
    """The linear, its weight dequantized and rounded once to the dtype of the model.

    Raises:
        FormatError: the values are not what the format promises.
    """
    whole = padded(tensors, scheme)
    unpacked = read(whole.tensors, scheme)
    layer, dtype = unpacked.weight.layer, unpacked.weight.scales.dtype
    weight = dequantize(unpacked.weight).to(dtype)
    if unpacked.perm is not None:
        columns = torch.empty_like(weight)
        columns[:, unpacked.perm] = weight
        weight = columns
    n, k = layer.n - whole.rows, layer.k - whole.columns
    linear = torch.nn.Linear(k, n, bias is not None, device="meta")
    linear.weight = torch.nn.Parameter(weight[:n, :k].contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear
