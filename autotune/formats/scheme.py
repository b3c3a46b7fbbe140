"""What a checkpoint says of its int4 linears, and what reading one of them gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autotune.errors import FormatError
from autotune.packing import QuantizedWeight


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the tensors of a quantized linear are to be read.

    `format` is a name in `FORMATS`; `group_size` -1 means one group of all k. `zero_point` False means every
    zero is 8. `desc_act` promises a `g_idx`, which is used wherever it is there. `minus_one`: zeros are
    stored as z - 1, as GPTQ v1 does. `dtype` is what the model computes in, by default the dtype of the
    stored scales; another one rounds them once.

    Raises:
        FormatError: the weights do not have 4 bits.
    """

    format: str
    group_size: int
    bits: int = 4
    zero_point: bool = True
    desc_act: bool = False
    minus_one: bool = False
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.bits != 4:
            raise FormatError(f"bits={self.bits}; only 4-bit weights are tuned")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A linear as it was read: out = x[..., perm] @ dequantize(weight).T.

    `perm` int32 [k] says which column of x meets each column of the weight; None where they are in order.
    """

    weight: QuantizedWeight
    perm: torch.Tensor | None = None
