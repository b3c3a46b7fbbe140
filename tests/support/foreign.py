"""Linears as other libraries hold them: their class names, attributes and tensors, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import packers
import torch
from torch.nn.functional import pad

from autotune.layouts import QuantizedWeight, dequantize


def linear(
    kind: str, weight: QuantizedWeight, tensors: packers.Tensors, **attributes: object
) -> torch.nn.Module:
    """A module of a class of that name; its sizes are the weight's unless attributes say otherwise."""
    module = type(kind, (torch.nn.Module,), {})()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    layer = weight.layer
    sizes = {"in_features": layer.k, "out_features": layer.n, "group_size": layer.group_size, "bias": None}
    for name, value in {**sizes, **attributes}.items():
        setattr(module, name, value)
    return module.eval()


def llm_awq(weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.nn.Module:
    tensors = packers.awq_gemv_fast(weight)
    return linear("WQLinear", weight, tensors, w_bit=4, split_k_iters=8, interleave=4, bias=bias)


def autoawq(kind: str) -> Callable[..., torch.nn.Module]:
    pack = {
        "WQLinear_GEMM": packers.awq_gemm,
        "WQLinear_GEMV": packers.awq_gemv,
        "WQLinear_GEMVFast": lambda weight: packers.awq_gemv_fast(weight, "qzeros"),
        "WQLinear_Marlin": packers.marlin,
        "WQLinear_Exllama": packers.awq_gemm,
    }[kind]

    def make(weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.nn.Module:
        extra = {"q4": None} if kind == "WQLinear_Exllama" else {}
        return linear(kind, weight, pack(weight), w_bit=4, bias=bias, **extra)

    return make


def gptqmodel(kind: str, version: int, **told: object) -> Callable[..., torch.nn.Module]:
    """A GPTQ linear of GPTQModel, whose zeros are of a version that its class or a method tells."""

    def make(
        weight: QuantizedWeight, bias: torch.Tensor | None = None, g_idx: torch.Tensor | None = None
    ) -> torch.nn.Module:
        word = packers.less_ones if version == 1 else packers.as_they_are
        tensors = packers.gptq_with(weight, word, g_idx)
        attributes = {"sym": weight.zeros is None, "desc_act": g_idx is not None, "adapter": None, **told}
        return linear(
            kind, weight, tensors, bits=4, had_K=None, online_full_had=False, bias=bias, **attributes
        )

    return make


def gptqmodel_awq(
    kind: str, pack: Callable[[QuantizedWeight], packers.Tensors]
) -> Callable[..., torch.nn.Module]:
    def make(weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.nn.Module:
        told = {"sym": weight.zeros is None, "desc_act": False, "adapter": None, "had_K": None}
        return linear(kind, weight, pack(weight), bits=4, bias=bias, **told)

    return make


def autogptq(weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.nn.Module:
    """AutoGPTQ's linear says neither `in_features` nor `sym`, and has zeros as in v1."""
    sizes = {"infeatures": weight.layer.k, "outfeatures": weight.layer.n}
    gone = {"in_features": None, "out_features": None}
    return linear("QuantLinear", weight, packers.gptq(weight), bits=4, bias=bias, **sizes, **gone)


def autogptq_marlin(weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.nn.Module:
    tensors = packers.marlin(weight)
    named = {"B": tensors["qweight"], "s": tensors["scales"], "workspace": torch.zeros(16, dtype=torch.int32)}
    sizes = {"infeatures": weight.layer.k, "outfeatures": weight.layer.n}
    gone = {"in_features": None, "out_features": None}
    return linear("QuantLinear", weight, named, bias=bias, **sizes, **gone)


def repacked_marlin(kind: str) -> Callable[..., torch.nn.Module]:
    """A linear of GPTQModel after `post_init`: tiles are padded, and so is the bias, which is permuted."""

    def make(
        weight: QuantizedWeight, bias: torch.Tensor | None = None, g_idx: torch.Tensor | None = None
    ) -> torch.nn.Module:
        layer, empty = weight.layer, torch.empty(0, dtype=torch.int32)
        order = empty if g_idx is None else torch.argsort(g_idx, stable=True).int()
        n, k = (-(-size // 128) * 128 for size in (layer.n, layer.k))
        tensors = {"qzeros": empty, **packers.marlin(padded(weight, n, k))}
        tensors["g_idx"] = empty if g_idx is None else g_idx[order.long()]
        told = {"sym": weight.zeros is None, "g_idx_sort_indices": order}
        told["_marlin_tile_padding"] = None if (n, k) == (layer.n, layer.k) else (n, k)
        if bias is not None:
            told["bias"] = packers.marlin_row(pad(bias, (0, n - layer.n)), grouped=False)
        return linear(kind, weight, tensors, bits=4, **told)

    return make


def padded(weight: QuantizedWeight, n: int, k: int) -> QuantizedWeight:
    """The weight in the corner of a larger one, whose scales are 0."""
    layer = weight.layer
    group_size = k if layer.groups == 1 else layer.group_size
    whole = replace(layer, n=n, k=k, group_size=group_size)
    more = (0, n - layer.n, 0, whole.groups - layer.groups)
    zeros = None if weight.zeros is None else pad(weight.zeros, more)
    q = pad(weight.q, (0, k - layer.k, 0, n - layer.n))
    return QuantizedWeight(whole, q, pad(weight.scales, more), zeros)


def compressed(
    weight: QuantizedWeight, bias: torch.Tensor | None = None, g_idx: torch.Tensor | None = None
) -> torch.nn.Module:
    """compressed-tensors keeps the class of the linear and exchanges its weight."""
    layer = weight.layer
    module = torch.nn.Linear(layer.k, layer.n, bias=bias is not None, dtype=weight.scales.dtype)
    del module.weight
    for name, tensor in packers.compressed_tensors(weight, g_idx).items():
        module.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    if bias is not None:
        module.bias = torch.nn.Parameter(bias)
    return module.eval()


def decompressed(weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.nn.Module:
    """compressed-tensors makes the weight dense at the first forward, for good."""
    layer = weight.layer
    module = torch.nn.Linear(layer.k, layer.n, bias=bias is not None, dtype=weight.scales.dtype)
    held = {
        "weight": dequantize(weight).to(weight.scales.dtype),
        "weight_scale": weight.scales.T.contiguous(),
    }
    if weight.zeros is not None:
        held["weight_zero_point"] = (weight.zeros.T.to(torch.int8) - 8).contiguous()
    for name, tensor in held.items():
        module.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    if bias is not None:
        module.bias = torch.nn.Parameter(bias)
    return module.eval()


def auto_round(file: str, word: packers.Word) -> Callable[..., torch.nn.Module]:
    """auto-round's linear, whose class has the same name and attributes in each of its files."""

    def make(weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.nn.Module:
        module = autogptq(weight, bias)
        module.qzeros = packers.gptq_with(weight, word)["qzeros"]
        type(module).__module__ = f"auto_round_extension.{file}"
        return module

    return make


MODULES: dict[str, Callable[..., torch.nn.Module]] = {
    "llm-awq WQLinear": llm_awq,
    **{
        kind: autoawq(kind)
        for kind in (
            "WQLinear_GEMM",
            "WQLinear_GEMV",
            "WQLinear_GEMVFast",
            "WQLinear_Marlin",
            "WQLinear_Exllama",
        )
    },
    "TorchQuantLinear": gptqmodel("TorchQuantLinear", 2, qzero_format=lambda: 2),
    "TorchLinear": gptqmodel("TorchLinear", 2, qzero_format=lambda: 1, REQUIRES_FORMAT_V2=True),
    "TritonV2Linear": gptqmodel("TritonV2Linear", 2, qzero_format=lambda: 2, REQUIRES_FORMAT_V2=True),
    "MarlinLinear before": gptqmodel("MarlinLinear", 1, qzero_format=lambda: 1, REQUIRES_FORMAT_V2=False),
    "MarlinLinear after": repacked_marlin("MarlinLinear"),
    "AwqMarlinLinear after": repacked_marlin("AwqMarlinLinear"),
    "AwqGEMMLinear": gptqmodel_awq("AwqGEMMLinear", packers.awq_gemm),
    "AwqGEMVLinear": gptqmodel_awq("AwqGEMVLinear", packers.awq_gemv),
    "LLMAwqLinear": gptqmodel_awq("LLMAwqLinear", packers.awq_gemv_fast),
    "AwqTorchLinear": gptqmodel_awq("AwqTorchLinear", packers.awq_gemm),
    "AutoGPTQ": autogptq,
    "AutoGPTQ Marlin": autogptq_marlin,
    "auto-round": auto_round("torch.qlinear_torch", packers.as_they_are),
    "auto-round triton": auto_round("triton.qlinear_tritonv2", packers.as_they_are),
    "auto-round zp": auto_round("torch.qlinear_torch_zp", packers.less_ones),
    "auto-round triton zp": auto_round("triton.qlinear_tritonv2_zp", packers.less_ones),
    "compressed-tensors": compressed,
    "compressed-tensors after": decompressed,
}
SYMMETRIC = ("WQLinear_Marlin", "MarlinLinear after", "AutoGPTQ Marlin")
"""Those that exist for symmetric weights only."""
