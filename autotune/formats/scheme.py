"""What a checkpoint says of its int4 linears, and what reading one of them gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autotune.checkpoints.quantization import CheckpointScheme
from autotune.layouts import QuantizedWeight


@dataclass(frozen=True, slots=True)
class TensorScheme(CheckpointScheme):
    """How the tensors of a quantized linear are to be read.

    `dtype` is what the model computes in, by default the dtype of the stored scales; another one rounds them
    once.

    Raises:
        FormatError: the weights do not have 4 bits.
    """

    dtype: torch.dtype | None = None


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A linear as it was read: out = x[..., perm] @ dequantize(weight).T.

    `perm` int32 [k] says which column of x meets each column of the weight; None where they are in order.
    """

    weight: QuantizedWeight
    perm: torch.Tensor | None = None
