"""What a checkpoint says of its int4 linears."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.values.errors import FormatError
from autotune.values.layer import Layer

_MOST_COLUMNS = 1 << 31


@dataclass(frozen=True, slots=True)
class CheckpointScheme:
    """How the tensors of a checkpoint's quantized linears are to be read.

    `format` is a name in `autotune.formats.FORMATS`; `group_size` -1 means one group of all k. `zero_point`
    False means every zero is 8; None means that the checkpoint does not say, so the stored zeros are read.
    `desc_act` promises a `g_idx`, which is used wherever it is there. `minus_one`: zeros are stored as z - 1,
    as GPTQ v1 does. `by_word`: the ones were subtracted from the packed word, in which a zero of 0 borrows
    from the next.

    Raises:
        FormatError: the weights do not have 4 bits, or no group has that size.
    """

    format: str
    group_size: int
    bits: int = 4
    zero_point: bool | None = True
    desc_act: bool = False
    minus_one: bool = False
    by_word: bool = False

    def __post_init__(self) -> None:
        if self.bits != 4:
            raise FormatError(f"bits={self.bits}; only 4-bit weights are tuned")
        if self.group_size >= _MOST_COLUMNS:
            raise FormatError("group_size is 2^31 or more, beyond any k")

    def layer(self, n: int, k: int, dtype: str) -> Layer:
        """The layer of a linear with n rows and k columns, computed in dtype.

        Raises:
            LayerError: no kernel takes the numbers, or group_size does not divide k.
        """
        zero_point = self.zero_point is not False
        return Layer(n, k, group_size=self.group_size, dtype=dtype, zero_point=zero_point)
