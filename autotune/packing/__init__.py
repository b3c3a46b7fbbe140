"""Quantized weights: the canonical form, the layouts that kernels read, and a reference matmul."""

from autotune.packing.packed import PackedWeight, pack, unpack
from autotune.packing.quantized import QuantizedWeight, dequantize, random_weight, reference_matmul

__all__ = [
    "PackedWeight",
    "QuantizedWeight",
    "dequantize",
    "pack",
    "random_weight",
    "reference_matmul",
    "unpack",
]
