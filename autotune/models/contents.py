"""What of a checkpoint is quantized, and where it goes in the model that transformers makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import torch

from autotune.formats import FORMATS, TensorScheme, names_of
from autotune.models.checkpoint import Checkpoint
from autotune.models.naming import Naming, Place
from autotune.values.errors import FormatError

_WEIGHTS = frozenset(format.NAMES[0] for format in FORMATS.values()) - {"weight"} | {"B"}
"""Last names that only a quantized weight has."""

_SCALES_ACTIVATIONS = ("awq_gemm", "awq_gemv", "awq_gemv_fast", "marlin")
"""The formats of AWQ, which moves scales of a linear without a norm ahead into the activation ahead of it."""


@dataclass(frozen=True)
class StoredLinear:
    """An int4 linear: its name in the checkpoint, the last names of its tensors, and the model's numbers."""

    source: str
    tensors: tuple[str, ...]
    n: int
    k: int
    biased: bool


@dataclass(frozen=True)
class Contents:
    """The quantized part of a checkpoint, by the model's names.

    `activations` maps each module whose result is to be divided by scales to the name of their tensor.
    """

    linears: dict[str, StoredLinear]
    activations: dict[str, str]


def contents_of(checkpoint: Checkpoint, scheme: TensorScheme, model: Any) -> Contents:
    """The quantized part of the checkpoint, for a model on the meta device that has all its linears.

    Raises:
        FormatError: the model has no place for a tensor, or one of another shape.
    """
    naming = Naming(model)
    contents = Contents({}, {})
    for source, held in _held(checkpoint, scheme).items():
        place = naming.place(f"{source}.weight")
        name = place.name.removesuffix(".weight")
        module = _module(model, name)
        if _is_linear(module) and not place.merged:
            if place.name in getattr(model, "all_tied_weights_keys", {}):
                raise FormatError(f"{source} is quantized, but tied to other weights by tie_word_embeddings")
            n, k, biased = module.out_features, module.in_features, module.bias is not None
            contents.linears[name] = StoredLinear(source, held, n, k, biased)
        elif _is_known(naming, source, held):
            continue
        elif held == ("scales",) and scheme.format in _SCALES_ACTIVATIONS and _is_activation(module):
            _expect_scales(checkpoint, f"{source}.scales", model, name)
            contents.activations[name] = f"{source}.scales"
        else:
            raise FormatError(_no_place(source, place, model, module))
    if not contents.linears:
        raise FormatError(f"no linear of the checkpoint is quantized in the format {scheme.format}")
    _expect_shapes(checkpoint, contents, naming)
    return contents


def _held(checkpoint: Checkpoint, scheme: TensorScheme) -> dict[str, tuple[str, ...]]:
    """The last names of the format's that the checkpoint has, by what is ahead of them."""
    known = names_of(scheme)
    found: dict[str, list[str]] = {}
    for name in checkpoint.names:
        source, _, last = name.rpartition(".")
        if last in known:
            found.setdefault(source, []).append(last)
        elif last in _WEIGHTS:
            raise FormatError(
                f"{name} is not of the format {scheme.format} that quantization_config names;"
                " a checkpoint of several formats is not read"
            )
    return {source: tuple(held) for source, held in found.items()}


def _is_known(naming: Naming, source: str, held: tuple[str, ...]) -> bool:
    """Whether the model itself has all these tensors, or the class says that it leaves them out."""
    names = [naming.place(f"{source}.{last}").name for last in held]
    return all(naming.holds(name) or naming.leaves_out(name) for name in names)


def _is_linear(module: torch.nn.Module | None) -> TypeGuard[torch.nn.Linear]:
    """Whether it multiplies and no more; a subclass with a forward of its own may give something else."""
    return isinstance(module, torch.nn.Linear) and type(module).forward is torch.nn.Linear.forward


def _is_activation(module: torch.nn.Module | None) -> bool:
    return module is not None and not module.state_dict() and not list(module.buffers())


def _no_place(source: str, place: Place, model: Any, module: torch.nn.Module | None) -> str:
    ahead, experts, _ = place.name.partition(".experts.")
    if experts and _module(model, f"{ahead}.experts") is not None:
        return (
            f"{source}: int4 experts are not supported yet, and {type(model).__name__} has some;"
            " load a model without experts"
        )
    what = f"has a {type(module).__name__} there"
    if place.merged:
        what = f"makes {place.name} of it and others"
    elif module is None:
        what = "has no such module"
    return f"{source} is quantized, but {type(model).__name__} {what}; only linears are read"


def _expect_scales(checkpoint: Checkpoint, tensor: str, model: Any, name: str) -> None:
    """FormatError unless a linear beside the activation takes as many columns as there are scales."""
    shape = list(checkpoint[tensor].shape)
    siblings = model.get_submodule(name.rpartition(".")[0]).children()
    sizes = {module.in_features for module in siblings if isinstance(module, torch.nn.Linear)}
    if len(shape) != 1 or shape[0] not in sizes:
        raise FormatError(f"{tensor} is {shape}, but the linears beside it have k={sorted(sizes)}")


def _expect_shapes(checkpoint: Checkpoint, contents: Contents, naming: Naming) -> None:
    """FormatError unless all that is not quantized has the shape that the model gives it."""
    quantized = {stored.source for stored in contents.linears.values()}
    for name in checkpoint.names:
        place = naming.place(name)
        if place.merged or not naming.holds(place.name) or name.rpartition(".")[0] in quantized:
            continue
        found, expected = list(checkpoint[name].shape), list(naming.shape(place.name))
        if found != expected:
            raise FormatError(f"{name} is {found}, expected {expected}")


def _module(model: Any, name: str) -> torch.nn.Module | None:
    try:
        module: torch.nn.Module = model.get_submodule(name)
    except AttributeError:
        return None
    return module
