"""Keeps packed weights out of checkpoints: no library reads them, under whatever config they are written."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

from autotune.values.errors import FormatError

_WRITERS = ("save_pretrained", "push_to_hub", "save_quantized")
_refusing: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


class Packed(torch.nn.Module):
    """A linear whose weights lie as a kernel reads them; it has no place in a checkpoint.

    Its `state_dict` goes to its copies, and a model with it goes through pickle.
    """

    def __init__(self) -> None:
        super().__init__()
        _guard_transformers()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _guard_transformers()


def guard_writers(model: torch.nn.Module) -> None:
    """Have every class of the model's modules that writes checkpoints refuse those with packed weights."""
    for kind in {base for module in model.modules() for base in type(module).__mro__}:
        _guard(kind)


def _guard_transformers() -> None:
    """The same for all of its models: one may come to hold a packed linear by a copy or a pickle."""
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is not None and hasattr(modeling, "PreTrainedModel"):
        _guard(modeling.PreTrainedModel)


def _guard(kind: type) -> None:
    for name in _WRITERS:
        write = vars(kind).get(name)
        if isinstance(write, FunctionType) and write not in _refusing:
            setattr(kind, name, _made_refusing(write))


def _made_refusing(write: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(write)
    def checked(self: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(self, torch.nn.Module) and not _writes_adapters(self):
            _refuse(self)
        return write(self, *arguments, **options)

    _refusing.add(checked)
    return checked


def _writes_adapters(model: torch.nn.Module) -> bool:
    """Whether what it writes are adapters only, as models of peft and those that transformers gave some."""
    of_peft = any(kind.__module__.partition(".")[0] == "peft" for kind in type(model).__mro__)
    return of_peft or bool(getattr(model, "_hf_peft_config_loaded", False))


def _refuse(model: torch.nn.Module) -> None:
    if any(isinstance(module, Packed) for module in model.modules()):
        came_from = getattr(getattr(model, "config", None), "_name_or_path", None)
        source = came_from or "the checkpoint that it was loaded from"
        raise FormatError(
            f"the weights of this {type(model).__name__} are packed for kernels, as no checkpoint has them;"
            f" copy {source} instead"
        )
