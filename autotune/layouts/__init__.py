"""Quantized weights: the canonical form, the layouts that kernels read, and a reference matmul."""

from autotune.layouts.packed import PackedWeight, pack, unpack
from autotune.schemes.int4 import QuantizedWeight, dequantize, random_weight, reference_matmul

__all__ = [
    "PackedWeight",
    "QuantizedWeight",
    "dequantize",
    "pack",
    "random_weight",
    "reference_matmul",
    "unpack",
]
