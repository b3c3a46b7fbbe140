"""Checkpoint formats: one file each, all read through the same two functions.

    scheme = detect(json.load(file)["quantization_config"])   # which format, group size, zeros
    layer = layer_of(tensors, scheme)                         # from shapes and dtypes alone; meta tensors do
    linear = read(tensors, scheme)                            # linear.weight: QuantizedWeight; linear.perm

`tensors` holds the tensors of one linear by their last name: of `model.layers.0.mlp.up_proj.qweight` it is
`qweight`. `names_of(scheme)` are the names that a format knows, the weight's first; a `bias` is not among
them, because every format stores it as it is. Reading happens on the device of the tensors. What cannot be
read is a FormatError, or a LayerError where no kernel takes the numbers; both name the value.

A linear with `perm` computes x[..., perm] @ w.T. `replace(scheme, dtype=torch.bfloat16)` reads scales into
the dtype that the model computes in. `modules.py` finds the same in linears that other libraries loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from autotune.formats import awq_gemm, awq_gemv, awq_gemv_fast, compressed_tensors, decompressed, gptq, marlin
from autotune.formats.scheme import TensorScheme, Unpacked, detect
from autotune.formats.tensors import Tensors
from autotune.values.layer import Layer

__all__ = [
    "FORMATS",
    "Format",
    "TensorScheme",
    "Tensors",
    "Unpacked",
    "detect",
    "layer_of",
    "names_of",
    "read",
]


class Format(Protocol):
    """What the file of a format has."""

    NAMES: tuple[str, ...]

    def layer_of(self, tensors: Tensors, scheme: TensorScheme) -> Layer:
        """The layer that the tensors describe, from their shapes and dtypes alone."""

    def read(self, tensors: Tensors, scheme: TensorScheme) -> Unpacked:
        """The linear of the tensors, on their device."""


FORMATS: Mapping[str, Format] = {
    "awq_gemm": awq_gemm,
    "awq_gemv": awq_gemv,
    "awq_gemv_fast": awq_gemv_fast,
    "compressed_tensors": compressed_tensors,
    "decompressed": decompressed,
    "gptq": gptq,
    "marlin": marlin,
}


def names_of(scheme: TensorScheme) -> tuple[str, ...]:
    """The last names of the tensors that a linear may have; the first is that of the weight."""
    return FORMATS[scheme.format].NAMES


def layer_of(tensors: Tensors, scheme: TensorScheme) -> Layer:
    """The layer that a linear's tensors describe, from their shapes and dtypes alone.

    Raises:
        FormatError: a tensor is missing, or its shape or dtype is not what the format promises.
        LayerError: the numbers fit together but no kernel takes them.
    """
    return FORMATS[scheme.format].layer_of(tensors, scheme)


def read(tensors: Tensors, scheme: TensorScheme) -> Unpacked:
    """The linear of the tensors, exact, on their device.

    Raises:
        FormatError: as layer_of, or the values are not what the format promises.
        LayerError: the numbers fit together but no kernel takes them.
    """
    return FORMATS[scheme.format].read(tensors, scheme)
