"""Quantized linears that other libraries loaded, as the tensors and the scheme that `read` takes.

A linear is known by its tensors and attributes, never by its package, which need not be installed; the shapes
of its weight and scales tell its format. A class's name serves only to refuse: some libraries repack weights
in place, or change x before the matmul, and nothing in the tensors says so. The file of a class serves only
where a library has two that differ in nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from autotune.formats import FORMATS, layer_of, names_of, read
from autotune.formats.marlin import renamed, rows_in_order
from autotune.formats.scheme import TensorScheme, Unpacked
from autotune.formats.tensors import describe, group_size_of, layer_with, nibbles, order_of
from autotune.schemes.int4 import SYMMETRIC_ZERO, TORCH_DTYPES, window
from autotune.values.errors import FormatError
from autotune.values.layer import Layer

# Parts of class names, and why such a linear stays as it is.
_REFUSED_NAMES = {
    "machete": "may have repacked its weights for Machete",
    "swordfish": "may have repacked its weights for Swordfish",
    "bitblas": "may have repacked its weights for BitBLAS",
    "ipex": "may have repacked its weights for IPEX",
    "qqq": "quantizes activations too",
    "paro": "rotates x before the matmul",
    "linear4bit": "holds codes of bitsandbytes (FP4 or NF4), which are no int4",
    "linear8bitlt": "has weights of 8 bits",
}
# Those of bitsandbytes, whose tensors have the names of a dense linear's.
_KNOWN_BY_NAME = ("Linear4bit", "Linear8bitLt")
# Attributes that say so when they are there and neither None nor False.
_REFUSED_ATTRIBUTES = {
    "q_handle": "had its weights shuffled in place by ExLlama",
    "q4": "had its weights shuffled in place by ExLlama",
    "scales_and_zeros": "had its weights repacked for torch's int4 kernel",
    "had_K": "rotates x before the matmul",
    "online_full_had": "rotates x before the matmul",
    "online_partial_had": "rotates x before the matmul",
    "planar": "stores its weights in planes of bits",
    "adapter": "has an adapter, which would be lost",
}
# auto-round's linears differ in nothing but the file of their class; its others repack their weights.
_AUTO_ROUND_V1 = {
    "qlinear_torch": False,
    "qlinear_torch_zp": True,
    "qlinear_tritonv2": False,
    "qlinear_tritonv2_zp": True,
}
_NAMES = frozenset(name for known in FORMATS.values() for name in known.NAMES)
TENSOR_NAMES = _NAMES | {"bias", "weight", "weight_shape"}
"""Tensors that a linear of one of the formats may have."""


@dataclass(frozen=True, slots=True)
class Found:
    """A quantized linear: what `read` takes, and its bias. Its tiles may be padded beyond `layer`."""

    layer: Layer
    scheme: TensorScheme
    tensors: dict[str, torch.Tensor]
    bias: torch.Tensor | None
    perm: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return next(iter(self.tensors.values())).device

    def read(self, device: str) -> Unpacked:
        """The linear, unpacked on the device."""
        unpacked = read({name: found.to(device) for name, found in self.tensors.items()}, self.scheme)
        weight = unpacked.weight
        if weight.layer != self.layer:
            weight = window(weight, self.layer, 0, 0)
        return Unpacked(weight, unpacked.perm if self.perm is None else self.perm.to(device))


def is_quantized(module: torch.nn.Module) -> bool:
    """Whether the module looks like a linear with quantized weights, of whatever kind."""
    if type(module).__name__ in _KNOWN_BY_NAME:
        return True
    held = _held(module, "qweight", "weight_packed", "weight_scale", "B", "s")
    return bool(held.keys() & {"qweight", "weight_packed", "weight_scale"}) or held.keys() == {"B", "s"}


def find(module: torch.nn.Module, dtype: torch.dtype | None = None) -> Found:
    """What the module holds; `dtype` is what its model computes in, by default that of the scales.

    Raises:
        FormatError: the module is something else than an int4 linear that can be read.
        LayerError: no kernel takes its numbers.
    """
    _refuse(module)
    tensors = {name: found.detach() for name, found in _held(module, *_NAMES).items()}
    if any(found.is_meta for found in tensors.values()):
        raise FormatError("has no weights yet: its tensors are on the meta device")
    if "weight_packed" in tensors:
        return _compressed(module, tensors, *_sizes(module), dtype)
    if "weight_scale" in tensors:
        return _decompressed(module, tensors, *_sizes(module), dtype)
    # AutoGPTQ's Marlin linears have 4 bits and do not say so.
    bits = 4 if "B" in tensors else _number(module, "w_bit", "bits")
    scheme = TensorScheme("marlin", _number(module, "group_size"), bits, dtype=dtype)
    n, k = _sizes(module)
    if _is_marlin(module, tensors, n, k):
        return _marlin(module, tensors, scheme, n, k)
    return _by_shape(module, tensors, scheme, n, k)


def _refuse(module: torch.nn.Module) -> None:
    name = type(module).__name__
    for part, reason in _REFUSED_NAMES.items():
        if part in name.lower():
            raise FormatError(f"{name} {reason}")
    for attribute, reason in _REFUSED_ATTRIBUTES.items():
        value = getattr(module, attribute, None)
        if value is not None and value is not False:
            raise FormatError(reason)
    _refuse_scheme(getattr(module, "quantization_scheme", None))


def _refuse_scheme(scheme: Any) -> None:
    """Raise FormatError when what compressed-tensors says of a linear is more than int4 weights."""
    for name in ("input_activations", "output_activations"):
        if getattr(scheme, name, None) is not None:
            raise FormatError(f"quantizes its {name.replace('_', ' ')} too")
    weights = getattr(scheme, "weights", None)
    kind = getattr(weights, "type", "int")
    kind = getattr(kind, "value", kind)
    if kind != "int":
        raise FormatError(f"has weights of type {kind}; only int4 weights are tuned")


def _compressed(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], n: int, k: int, dtype: torch.dtype | None
) -> Found:
    packed, scale = tensors["weight_packed"], tensors.get("weight_scale", torch.empty(0))
    scheme = TensorScheme(
        "compressed_tensors",
        group_size_of("weight_scale", scale, 1, k),
        bits=32 * packed.shape[-1] // k,
        zero_point="weight_zero_point" in tensors,
        dtype=dtype,
    )
    return _found(module, tensors, scheme, n, k)


def _decompressed(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], n: int, k: int, dtype: torch.dtype | None
) -> Found:
    weight, zeros = tensors.get("weight"), tensors.get("weight_zero_point")
    if weight is None or weight.dtype not in TORCH_DTYPES.values() or "weight_g_idx" in tensors:
        held = "missing" if weight is None else describe(weight)
        raise FormatError(f"has no packed 4-bit weight: weight is {held}")
    scheme = TensorScheme(
        "decompressed",
        group_size_of("weight_scale", tensors["weight_scale"], 1, k),
        zero_point=zeros is not None and bool(zeros.any()),
        dtype=dtype,
    )
    return _found(module, tensors, scheme, n, k)


def _by_shape(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], scheme: TensorScheme, n: int, k: int
) -> Found:
    name = _layout(tensors, scheme, n, k)
    g_idx = tensors.get("g_idx")
    if name == "gptq":
        scheme = _gptq_scheme(module, tensors, scheme)
    elif g_idx is not None and g_idx.numel():
        shape = list(tensors["qweight"].shape)
        raise FormatError(f"g_idx is {describe(g_idx)}, but qweight {shape} is not in the GPTQ layout")
    else:
        symmetric = name == "awq_gemm" and getattr(module, "sym", False) and _all_are(tensors, SYMMETRIC_ZERO)
        scheme = replace(scheme, format=name, zero_point=not symmetric)
    return _found(module, tensors, scheme, n, k)


def _layout(tensors: dict[str, torch.Tensor], scheme: TensorScheme, n: int, k: int) -> str:
    """The format whose weight and scales have these shapes; no two have the same for any n and k."""
    groups = layer_with(tensors, scheme, n, k).groups
    weight, scales = tensors["qweight"], tensors["scales"]
    if weight.dtype == torch.int16:
        return "awq_gemv_fast"
    shapes = tuple(weight.shape), tuple(scales.shape)
    if shapes[0] == (n, k // 8) and shapes[1][:1] == (n,):
        return "awq_gemv"
    known = {((k, n // 8), (groups, n)): "awq_gemm", ((k // 8, n), (groups, n)): "gptq"}
    if shapes not in known:
        held = f"qweight {describe(weight)} with scales {describe(scales)}"
        raise FormatError(f"{held} is no known layout of n={n}, k={k}, group_size={scheme.group_size}")
    return known[shapes]


def _gptq_scheme(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], scheme: TensorScheme
) -> TensorScheme:
    """Symmetric if all zeros are as a symmetric linear stores them; else of the version its kernel reads."""
    minus_one, symmetric = _is_v1(module), getattr(module, "sym", None)
    stored = (7, 8) if symmetric else (SYMMETRIC_ZERO - bool(minus_one),)
    zero_point = symmetric is False or not _all_are(tensors, *stored)
    if zero_point and minus_one is None:
        raise FormatError("does not say whether its zeros are those of GPTQ v1 or v2")
    return replace(
        scheme,
        format="gptq",
        minus_one=bool(minus_one),
        by_word=bool(minus_one) and not _is_autogptq(module),
        zero_point=zero_point,
    )


def _is_v1(module: torch.nn.Module) -> bool | None:
    """Whether zeros are stored as z - 1: as the class's kernel needs them, else as AutoGPTQ has them.

    `qzero_format` counts conversions from v1 only: it is 1 for a checkpoint that was v2 from the start.
    """
    if _is_autogptq(module):
        return True
    package, _, file = type(module).__module__.rpartition(".")
    if package.startswith("auto_round_extension"):
        return _AUTO_ROUND_V1.get(file)
    needs_v2, told = getattr(module, "REQUIRES_FORMAT_V2", None), getattr(module, "qzero_format", None)
    if needs_v2 is not None:
        return not needs_v2
    return None if callable(told) and told() == 1 else False


def _is_autogptq(module: torch.nn.Module) -> bool:
    """Whether nothing says that GPTQModel or auto-round wrote its zeros, who subtract from the whole word."""
    told = getattr(module, "REQUIRES_FORMAT_V2", None), getattr(module, "qzero_format", None)
    return told == (None, None) and not type(module).__module__.startswith("auto_round_extension")


def _all_are(tensors: dict[str, torch.Tensor], *values: int) -> bool:
    zeros = tensors.get("qzeros")
    return zeros is not None and any(bool((nibbles(zeros) == value).all()) for value in values)


def _is_marlin(module: torch.nn.Module, tensors: dict[str, torch.Tensor], n: int, k: int) -> bool:
    padded_n, padded_k = _padded(module, n, k)
    found = tensors["B" if "B" in tensors else "qweight"]
    return found.dtype == torch.int32 and tuple(found.shape) == (padded_k // 16, 2 * padded_n)


def _padded(module: torch.nn.Module, n: int, k: int) -> tuple[int, int]:
    """n and k of the tiles, as GPTQModel notes them."""
    padded_n, padded_k = getattr(module, "_marlin_tile_padding", None) or (n, k)
    return padded_n, padded_k


def _marlin(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], scheme: TensorScheme, n: int, k: int
) -> Found:
    """Weights that were stored or repacked for Marlin; GPTQModel permutes the bias too."""
    bias, perm = getattr(module, "bias", None), None
    zeros = tensors.get("qzeros")
    group_size = -1 if scheme.group_size == k else scheme.group_size
    scheme = replace(scheme, group_size=group_size, zero_point=zeros is not None and bool(zeros.numel()))
    sorted_by = getattr(module, "g_idx_sort_indices", None)
    if sorted_by is not None and bias is not None:
        # Only a version that notes its padding is sure to have permuted it.
        if not hasattr(module, "_marlin_tile_padding"):
            raise FormatError("was repacked for Marlin, and its bias may be permuted; apply before post_init")
        bias = rows_in_order(bias.detach())[:n]
    layer = layer_with(renamed(tensors), scheme, n, k)
    if sorted_by is not None and sorted_by.numel():
        if order_of(tensors["g_idx"], layer, "g_idx") is not None:
            raise FormatError("g_idx of weights that were repacked for Marlin is not sorted")
        perm = sorted_by.detach().int()
    return Found(layer, scheme, _known(tensors, scheme), bias, perm)


def _found(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], scheme: TensorScheme, n: int, k: int
) -> Found:
    tensors = _known(tensors, scheme)
    layer = layer_of(tensors, scheme)
    for name, size, told in (("in_features", layer.k, k), ("out_features", layer.n, n)):
        if told != size:
            raise FormatError(f"{name}={told}, but its tensors say {size}")
    return Found(layer, scheme, tensors, getattr(module, "bias", None))


def _known(tensors: dict[str, torch.Tensor], scheme: TensorScheme) -> dict[str, torch.Tensor]:
    return {name: tensors[name] for name in names_of(scheme) if name in tensors}


def _held(module: torch.nn.Module, *names: str) -> dict[str, torch.Tensor]:
    found = {name: getattr(module, name, None) for name in names}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def _sizes(module: torch.nn.Module) -> tuple[int, int]:
    return _number(module, "out_features", "outfeatures"), _number(module, "in_features", "infeatures")


def _number(module: torch.nn.Module, *names: str) -> int:
    for name in names:
        found = getattr(module, name, None)
        if isinstance(found, int):
            return found
    raise FormatError(f"has no number {' or '.join(names)}; only int4 linears are tuned")
