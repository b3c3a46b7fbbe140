"""SGLang's int4 linears on tuned kernels: entry point `sglang.srt.plugins`, in force with AUTOTUNE_SGLANG=1.

SGLang has no list of kernels to choose from. Three of its classes serve int4 linears: each repacks a layer's
weights once they are loaded and multiplies with them afterwards. Both methods are wrapped, so a layer that no
kernel here takes goes on to SGLang's own, with the reason in the log. Loaders, shards, merged projections and
skipped modules stay SGLang's.
"""

from __future__ import annotations

import functools
import inspect
import logging
import multiprocessing
import os
import pkgutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from autotune.formats import Tensors, TensorScheme, read
from autotune.layouts import pack
from autotune.runtime.op import int4_linear
from autotune.runtime.plans import LayerPlans, default_lookup, device_of, plans_for
from autotune.serving.sets import hand_on_set
from autotune.values.errors import AutotuneError

SWITCH = "AUTOTUNE_SGLANG"
_LOAD = "process_weights_after_loading"
_SEVENS = 0x77777777
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Names:
    """A layer's parameters: the packed weight, its scales, its zeros and the order of its columns."""

    qweight: str
    scales: str
    zeros: str
    order: str


@dataclass(frozen=True, slots=True)
class _Target:
    """A class of SGLang: where it is, its method that multiplies, and how its layers are read."""

    path: str
    call: str
    names: _Names
    scheme: Callable[[Any], TensorScheme]


@dataclass(frozen=True, slots=True)
class _Served:
    """What a call needs beside the layer's parameters; plans live as long as something holds them."""

    names: _Names
    plans: LayerPlans
    handle: str
    zeros: bool
    permuted: bool


def register() -> None:
    """Wrap SGLang's classes, once in each process; one that is not known is left alone, with a warning."""
    mode = os.environ.get(SWITCH, "0")
    if mode == "1":
        _register_once()
    elif mode != "0":
        _log.warning("%s=%r is not 0 or 1; SGLang's own kernels serve", SWITCH, mode)
    elif multiprocessing.parent_process() is None:
        _log.info("autotune can serve int4 linears of SGLang: switch it on with %s=1", SWITCH)


@functools.cache
def _register_once() -> None:
    hand_on_set()
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        for target in _TARGETS:
            _check(target)
        for target in _TARGETS:
            load = functools.partial(_load, target)
            HookRegistry.register(f"{target.path}.{_LOAD}", load, HookType.AROUND)
            HookRegistry.register(f"{target.path}.{target.call}", _call, HookType.AROUND)
    except Exception as error:
        _log.warning("autotune does not know this SGLang, whose own kernels serve: %r", error)


def _check(target: _Target) -> None:
    """Raise where the class is not there, or its methods take other arguments than ours."""
    wrapped = pkgutil.resolve_name(target.path)
    for method, expected in ((_LOAD, ["self", "layer"]), (target.call, ["self", "layer", "x", "bias"])):
        found = list(inspect.signature(getattr(wrapped, method)).parameters)
        if found != expected:
            raise TypeError(f"{target.path}.{method} takes {found}, not {expected}")


def _load(target: _Target, original: Callable[..., None], owner: Any, layer: torch.nn.Module) -> None:
    """Pack the layer's loaded weights for our kernels, or leave them to `original` as they are."""
    try:
        if not _is_packed(target, owner, layer):
            owner.autotune = _serve(target, owner, layer)
    except (AutotuneError, AttributeError) as error:
        # AttributeError: in this SGLang the class holds other things.
        owner.autotune = None
        _say(logging.WARNING, f"SGLang's own kernel serves a linear: {error}")
        original(owner, layer)


def _is_packed(target: _Target, owner: Any, layer: torch.nn.Module) -> bool:
    """Whether the layer holds what `_serve` made of it before, as where SGLang loads in two passes."""
    served: _Served | None = getattr(owner, "autotune", None)
    return served is not None and getattr(layer, target.names.qweight).shape == served.plans.form.qweight


def _serve(target: _Target, owner: Any, layer: torch.nn.Module) -> _Served:
    """Replace the layer's parameters by plain ones in our layout; none is touched where that fails."""
    names = target.names
    scheme = target.scheme(owner)
    lookup = default_lookup(device_of(getattr(layer, names.qweight)))
    unpacked = read(_tensors(layer, names, scheme), scheme)
    plans = plans_for(unpacked.weight.layer, lookup)
    packed = pack(unpacked.weight, plans.device.kind)
    empty = packed.qweight.new_empty(0)
    perm = unpacked.perm
    for name, tensor in (
        (names.qweight, packed.qweight),
        (names.scales, packed.scales),
        (names.zeros, empty if packed.zeros is None else packed.zeros),
        (names.order, empty if perm is None else perm),
    ):
        setattr(layer, name, torch.nn.Parameter(tensor, requires_grad=False))
    sources = Counter(answer.source for answer in plans.answers)
    found = ", ".join(f"{count} {source}" for source, count in sources.items())
    _say(logging.INFO, f"autotune serves {plans.layer}; of its {len(plans.answers)} buckets run {found}")
    return _Served(names, plans, plans.handle, packed.zeros is not None, perm is not None)


def _tensors(layer: torch.nn.Module, names: _Names, scheme: TensorScheme) -> Tensors:
    """The tensors of the linear that SGLang would read too, for `autotune.formats.read`."""
    tensors = {name: getattr(layer, name).data for name in (names.qweight, names.scales)}
    if scheme.desc_act:
        tensors[names.order] = getattr(layer, names.order).data
    if scheme.zero_point:
        tensors[names.zeros] = getattr(layer, names.zeros).data
    elif scheme.format == "gptq":
        # The format has zeros everywhere, and dummy weights have none that are in order.
        tensors[names.zeros] = torch.full_like(getattr(layer, names.zeros).data, _SEVENS)
    return tensors


def _call(
    original: Callable[..., torch.Tensor],
    owner: Any,
    layer: torch.nn.Module,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """out[..., n] of x[..., k], by our op where it serves the layer."""
    served: _Served | None = getattr(owner, "autotune", None)
    if served is None:
        return original(owner, layer, x, bias)
    held: Any = layer._parameters
    names = served.names
    if served.permuted:
        x = x.index_select(-1, held[names.order])
    zeros = held[names.zeros] if served.zeros else None
    out: torch.Tensor = int4_linear(x, held[names.qweight], held[names.scales], zeros, bias, served.handle)
    return out


@functools.cache
def _say(level: int, message: str) -> None:
    """Log a line once, however many layers it is true of."""
    _log.log(level, message)


def _awq(kernel: Any) -> TensorScheme:
    config = kernel.quant_config
    return TensorScheme("awq_gemm", config.group_size, config.weight_bits)


def _gptq(kernel: Any) -> TensorScheme:
    """SGLang's class takes symmetric weights only."""
    config = kernel.kernel_config
    bits = kernel.quant_config.weight_bits
    return TensorScheme("gptq", config.group_size, bits, config.zero_points, config.has_g_idx)


def _compressed_tensors(scheme: Any) -> TensorScheme:
    config = scheme.kernel_config
    bits = 32 // scheme.pack_factor
    return TensorScheme("compressed_tensors", config.group_size, bits, config.zero_points, config.has_g_idx)


_QUANTIZATION = "sglang.srt.layers.quantization"
_KERNELS = "sglang.srt.hardware_backend.gpu.quantization"
_WORDS = _Names("qweight", "scales", "qzeros", "g_idx")
_PACKED = _Names("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx")
_TARGETS = (
    _Target(f"{_KERNELS}.awq_kernels.AWQMarlinLinearKernel", "apply", _WORDS, _awq),
    _Target(f"{_KERNELS}.gptq_kernels.GPTQMarlinLinearKernel", "apply", _WORDS, _gptq),
    _Target(
        f"{_QUANTIZATION}.compressed_tensors.schemes.compressed_tensors_wNa16.CompressedTensorsWNA16",
        "apply_weights",
        _PACKED,
        _compressed_tensors,
    ),
)
