"""The AutoAWQ "gemm" checkpoint layout.

`qweight` int32 [k, n/8] and `qzeros` int32 [k/group_size, n/8] hold eight columns of n in a word: nibble i of
word c is column 8 c + (0, 2, 4, 6, 1, 3, 5, 7)[i]. `scales` [k/group_size, n]. Zeros are stored as they are.
"""

from __future__ import annotations

import torch

from autotune.errors import FormatError
from autotune.layer import Layer
from autotune.packing import QuantizedWeight
from autotune.packing.quantized import SYMMETRIC_ZERO, TORCH_DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def layer_of(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> Layer:
    """The layer that the tensors describe, from their shapes and dtypes alone.

    Raises:
        FormatError: a shape or dtype is not what the layout promises for the others.
        LayerError: the numbers fit together but no kernel takes them, as group_size=48.
    """
    if qweight.dim() != 2 or qweight.dtype != torch.int32:
        raise FormatError(f"qweight is {_describe(qweight)}, expected torch.int32 [k, n/8]")
    k, n = qweight.shape[0], qweight.shape[1] * 8
    groups = scales.shape[0] if scales.dim() == 2 else 0
    if scales.dtype not in _DTYPE_NAMES or groups < 1 or k % groups or scales.shape[1] != n:
        known = ", ".join(str(dtype) for dtype in _DTYPE_NAMES)
        raise FormatError(
            f"scales are {_describe(scales)}, expected one of {known} in [k/group_size, n] with k={k}, n={n}"
        )
    if tuple(qzeros.shape) != (groups, n // 8) or qzeros.dtype != torch.int32:
        raise FormatError(f"qzeros are {_describe(qzeros)}, expected torch.int32 [{groups}, {n // 8}]")
    return Layer(n, k, k // groups, _DTYPE_NAMES[scales.dtype])


def to_quantized(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> QuantizedWeight:
    """The canonical weight of the tensors, exact, on their device; the layer's dtype is that of scales.

    Raises:
        FormatError: a shape or dtype is not what the layout promises, or a scale is not finite.
        LayerError: the numbers fit together but no kernel takes them.
    """
    layer = layer_of(qweight, qzeros, scales)
    # Words are transposed, not nibbles: a fourth of the elements, and the unpacking then streams.
    q = _unpack(qweight.T.contiguous()).view(layer.n, layer.k)
    zeros = _unpack(qzeros.T.contiguous()).view(layer.n, layer.groups).T.contiguous()
    return QuantizedWeight(layer, q, scales.contiguous(), zeros)


def from_quantized(weight: QuantizedWeight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qweight, qzeros and scales of a canonical weight; without zeros, qzeros hold 8 everywhere."""
    layer = weight.layer
    zeros = weight.zeros
    if zeros is None:
        shape = (layer.groups, layer.n)
        zeros = torch.full(shape, SYMMETRIC_ZERO, dtype=torch.uint8, device=weight.q.device)
    return _pack(weight.q).T.contiguous(), _pack(zeros.T).T.contiguous(), weight.scales


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """int32 [n/8, rows] to uint8 [n/8, 8, rows], columns of n in their natural order."""
    count, rows = words.shape
    # Column 8 c + 4 pair + 2 high + odd lies in byte 2 odd + pair of its word, in the low or high nibble.
    source = words.unsqueeze(-1).view(torch.uint8).view(count, rows, 2, 2).permute(0, 3, 2, 1)
    columns = torch.empty((count, 2, 2, 2, rows), dtype=torch.uint8, device=words.device)
    torch.bitwise_and(source, 15, out=columns[:, :, 0])
    torch.bitwise_right_shift(source, 4, out=columns[:, :, 1])
    return columns


def _pack(columns: torch.Tensor) -> torch.Tensor:
    """uint8 [n, rows] to int32 [n/8, rows], the inverse of `_unpack`."""
    rows = columns.shape[1]
    split = columns.reshape(-1, 2, 2, 2, rows)
    packed = torch.empty((split.shape[0], rows, 2, 2), dtype=torch.uint8, device=columns.device)
    torch.bitwise_or(split[:, :, 0], split[:, :, 1] << 4, out=packed.permute(0, 3, 2, 1))
    return packed.view(split.shape[0], rows, 4).view(torch.int32).squeeze(-1)


def _describe(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
