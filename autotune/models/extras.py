"""What a module carries beside its tensors: what a tuned linear takes over, and what keeps the module."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch

from autotune.formats.modules import TENSOR_NAMES
from autotune.values.errors import FormatError

_TAKEN_OVER = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_LOST = {
    "_backward_hooks": "backward hooks, and no gradient passes a tuned linear",
    "_backward_pre_hooks": "backward hooks, and no gradient passes a tuned linear",
    "_state_dict_hooks": "state_dict hooks, which know its own tensors only",
    "_state_dict_pre_hooks": "state_dict hooks, which know its own tensors only",
    "_load_state_dict_pre_hooks": "load_state_dict hooks, which know its own tensors only",
    "_load_state_dict_post_hooks": "load_state_dict hooks, which know its own tensors only",
}


def check_extras(module: torch.nn.Module, place: str) -> None:
    """Check that a tuned linear on device `place` computes and does all that the module does.

    Raises:
        FormatError: something would be lost; the message says what.
    """
    for name, what in _LOST.items():
        if getattr(module, name, None):
            raise FormatError(f"has {what}")
    children = [name for name, child in module.named_children()]
    if children:
        raise FormatError(f"has modules inside, which would be lost: {', '.join(children)}")
    held = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    unknown = [name for name, tensor in held if _is_unknown(name, tensor)]
    if unknown:
        raise FormatError(f"has tensors that its format does not know: {', '.join(unknown)}")
    # compressed-tensors puts in a mapping that fetches weights when they are asked for.
    if not isinstance(module._parameters, dict):
        raise FormatError("has its weights offloaded")
    for hook in _accelerate_hooks(module):
        _check_accelerate(hook, torch.device(place))
    _check_forward(module)


def take_over(old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Have `new` call the forward hooks of `old`; whoever added one can still remove it."""
    # The same dictionaries, because the handles that remove hooks know these.
    vars(new).update({name: vars(old)[name] for name in _TAKEN_OVER if name in vars(old)})
    hook = vars(old).get("_hf_hook")
    if hook is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(new, hook)


def _is_unknown(name: str, tensor: torch.Tensor) -> bool:
    """Whether it may take part in the product; a kernel's orders and scratch memory are whole numbers."""
    return name not in TENSOR_NAMES and tensor.is_floating_point() and tensor.numel() > 0


def _check_forward(module: torch.nn.Module) -> None:
    """Raise FormatError when the module computes by another forward than that of the class we know."""
    kind = type(module)
    own = vars(module).get("forward")
    if isinstance(own, functools.partial) and _home(own.func) == "accelerate.hooks":
        own = vars(module).get("_old_forward")
    # Some libraries have torch compile the forward of their class.
    own = getattr(own, "_torchdynamo_orig_callable", own)
    function = getattr(own, "__func__", own)
    # compressed-tensors replaces that of every linear with a scheme, and only the scheme says what it does.
    by_scheme = hasattr(module, "quantization_scheme") and _home(function).startswith("compressed_tensors.")
    if own is not None and function is not kind.forward and not by_scheme:
        raise FormatError("has a forward of its own, put in place of its class's")
    if kind.__call__ is not torch.nn.Module.__call__:
        raise FormatError(f"is a {kind.__name__}, whose class replaces __call__")
    forwards = [base for base in kind.__mro__ if "forward" in vars(base) and base is not torch.nn.Module]
    if len(forwards) > 1 and not _are_of_one_package(*forwards[:2]):
        raise FormatError(f"is a {kind.__name__}, whose forward is not that of {forwards[1].__name__}")


def _home(function: Any) -> str:
    """The module in which the function was written, whatever name it took over from another."""
    return str(getattr(function, "__globals__", {}).get("__name__"))


def _are_of_one_package(kind: type, base: type) -> bool:
    """Whether a library derived one of its kernels from another, rather than somebody from a library's."""
    package, _, inside = kind.__module__.partition(".")
    return bool(inside) and base.__module__.partition(".")[0] == package


def _accelerate_hooks(module: torch.nn.Module) -> Iterator[Any]:
    hook = vars(module).get("_hf_hook")
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def _check_accelerate(hook: Any, place: torch.device) -> None:
    """Raise FormatError unless all that the hook does is to move x to the device `place`."""
    kind = type(hook).__name__
    if kind != "AlignDevicesHook" or hook.offload:
        offloads = ", which offloads its weights" if getattr(hook, "offload", False) else ""
        raise FormatError(f"has accelerate's {kind}{offloads}")
    if hook.execution_device is not None:
        held = torch.device(hook.execution_device)
        if (held.type, held.index or 0) != (place.type, place.index or 0):
            raise FormatError(f"is kept on {held} by accelerate's {kind}")
