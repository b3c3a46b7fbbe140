"""What a checkpoint says of its int4 linears, and what reading one of them gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from autotune.checkpoints.quantization import CheckpointScheme, parse_quantization
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


def detect(config: Any) -> TensorScheme:
    """The scheme of a checkpoint, from its `quantization_config` (or AutoGPTQ's quantize_config.json).

    Raises:
        FormatError: as parse_quantization.
    """
    return TensorScheme(**asdict(parse_quantization(config)))


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A linear as it was read: out = x[..., perm] @ dequantize(weight).T.

    `perm` int32 [k] says which column of x meets each column of the weight; None where they are in order.
    """

    weight: QuantizedWeight
    perm: torch.Tensor | None = None
