"""An int4 linear that no kernel takes, as a dense one."""

from __future__ import annotations

import torch

from autotune.formats import Scheme, Tensors, read
from autotune.packing import dequantize

_ROWS = {
    "awq_gemv": ("qweight", "qzeros", "scales"),
    "compressed_tensors": ("weight_packed", "weight_scale"),
}
"""Of the formats that can hold any n: the tensors with a row for each of n, the weight's first."""

_MULTIPLE = 8


def padded(tensors: Tensors, scheme: Scheme) -> Tensors:
    """The tensors of a linear with its last row repeated until n is a multiple of 8, as formats are read."""
    rows = _ROWS.get(scheme.format, ())
    more = -tensors[rows[0]].shape[0] % _MULTIPLE if rows and rows[0] in tensors else 0
    if not more:
        return tensors
    repeated = {
        name: torch.cat([tensors[name], tensors[name][-1:].expand(more, -1)])
        for name in rows
        if name in tensors
    }
    return {name: found for name, found in tensors.items() if name != "weight_shape"} | repeated


def dense_linear(tensors: Tensors, scheme: Scheme, n: int, bias: torch.Tensor | None) -> torch.nn.Linear:
    """The linear of n rows, its weight dequantized and rounded once to the dtype of the model.

    Raises:
        FormatError: the values are not what the format promises.
    """
    unpacked = read(padded(tensors, scheme), scheme)
    dtype = unpacked.weight.scales.dtype
    weight = dequantize(unpacked.weight)[:n].to(dtype)
    if unpacked.perm is not None:
        columns = torch.empty_like(weight)
        columns[:, unpacked.perm] = weight
        weight = columns
    linear = torch.nn.Linear(weight.shape[1], n, bias is not None, device="meta")
    linear.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear
