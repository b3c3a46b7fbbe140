"""A scheme: how the weights of a layer are stored and multiplied."""

from __future__ import annotations

import re
from dataclasses import dataclass

from autotune.values.errors import LayerError

DTYPES = ("fp16", "bf16", "fp32")
GROUP_SIZES = (32, 64, 128)
_WEIGHTS = ("int4",)
_TEXT = re.compile(r"([a-z0-9]+)-(?:channel|g([1-9][0-9]{0,8}))-(zp|sym)-([a-z0-9]+)")


@dataclass(frozen=True, slots=True, order=True)
class Scheme:
    """How weights are stored and multiplied; as text `int4-g128-zp-fp16`, or `int4-channel-sym-bf16`.

    `weight` is how one weight is stored: `int4`. Of `group_size` weights along k, which share a scale, -1
    (`channel`) means all of k. `dtype` is that of x, the scales and out: fp16, bf16, or fp32 (CPU only).
    `zeros` False (`sym`) means every zero is 8. `activations` is what x is rounded to in the product: None.

    Other weights (`int8`, `mxfp4`, `nvfp4`, `fp8`) are further values of `weight`, and fp8 activations one of
    `activations`, which ends the text; families that cannot do them reject their problems.

    Raises:
        LayerError: a value is none of these.
    """

    weight: str = "int4"
    group_size: int = 128
    dtype: str = "fp16"
    zeros: bool = True
    activations: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("weight", _WEIGHTS), ("dtype", DTYPES), ("activations", (None,))):
            value = getattr(self, name)
            if value not in known:
                raise LayerError(f"{name}={value!r} is not one of {', '.join(map(str, known))}")
        if self.group_size not in (*GROUP_SIZES, -1):
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise LayerError(f"group_size={self.group_size} is not one of {sizes}, or -1 (all of k)")

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Read the text form.

        Raises:
            LayerError: the text is none, or names what no scheme has.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise LayerError(f"scheme {text!r} does not read as int4-g128-zp-fp16")
        weight, group_size, zeros, dtype = match.groups()
        return cls(weight, int(group_size or -1), dtype, zeros == "zp")

    def __str__(self) -> str:
        groups = "channel" if self.group_size == -1 else f"g{self.group_size}"
        return f"{self.weight}-{groups}-{'zp' if self.zeros else 'sym'}-{self.dtype}"
