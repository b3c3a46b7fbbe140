"""A checkpoint's int4 linears, planned before a model's other weights are read and packed after them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from autotune.errors import AutotuneError, FormatError
from autotune.formats import FORMATS, Scheme, Unpacked, layer_of, names_of, read
from autotune.layer import Layer
from autotune.runtime.checkpoint import Checkpoint
from autotune.runtime.fused import (
    ARCHITECTURES,
    FUSED,
    concatenated,
    concatenated_bias,
    fused_layer,
    parts,
)
from autotune.runtime.linear import Int4Linear
from autotune.runtime.lookup import Lookup
from autotune.runtime.plans import LayerPlans, plans_for
from autotune.runtime.report import LayerReport, Report

_WEIGHTS = frozenset(format.NAMES[0] for format in FORMATS.values()) - {"weight"} | {"B"}
"""Last names that only a quantized weight has."""


@dataclass(frozen=True)
class _Linear:
    """A quantized linear of the checkpoint; `tensors` are the last names of those that its format reads."""

    name: str
    layer: Layer
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    """Linears that become one: several are fused under the name `name`."""

    name: str
    linears: tuple[_Linear, ...]
    plans: LayerPlans


class Linears:
    """The int4 linears of a model that is being loaded: `prepare`, load all other weights, `fill`."""

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme, lookup: Lookup, *, fuse: bool) -> None:
        self._checkpoint = checkpoint
        self._scheme = scheme
        self._lookup = lookup
        self._fuse = fuse
        self._groups: list[_Group] = []
        self._plans_s = 0.0

    def prepare(self, model: torch.nn.Module, model_type: str) -> str:
        """Plan every int4 linear, and take it out of the model, which is on the meta device.

        All that can be told without reading weights is checked here. Returned is a regular expression that
        finds the names of the tensors that `fill` reads.

        Raises:
            FormatError, LayerError: the checkpoint does not fit the model or no kernel takes it; the message
                has the name of the tensor.
            CompileError, LaunchError, DeviceError: as LayerPlans.
        """
        linears = {name: self._linear(name, held, model) for name, held in self._quantized().items()}
        if not linears:
            raise FormatError(f"no linear of the checkpoint is quantized in the format {self._scheme.format}")
        self._check_others(model, linears)
        started = time.perf_counter()
        fuse = self._fuse and model_type in ARCHITECTURES
        self._groups = [self._planned(*group) for group in _grouped(linears, fuse)]
        self._plans_s = time.perf_counter() - started
        for name in linears:
            # Without parameters, so that nobody allocates or initializes what comes later.
            _set(model, name, torch.nn.Identity())
        children = {name.rpartition(".")[2] for name in linears}
        return rf"(^|\.)({'|'.join(sorted(children))})\.({'|'.join((*names_of(self._scheme), 'bias'))})$"

    def fill(self, model: torch.nn.Module) -> Report:
        """Read, pack and put in the linears, so that one at a time is unpacked.

        Raises:
            FormatError: the values of a linear are not what its format promises.
        """
        started = time.perf_counter()
        applied: dict[LayerPlans, list[str]] = {}
        for group in self._groups:
            for name, plans in self._put(model, group).items():
                applied.setdefault(plans, []).append(name)
        if self._lookup.device.kind == "cuda":
            torch.cuda.synchronize(self._lookup.device.torch_name)
        layers = tuple(
            LayerReport(plans.layer, plans.device.torch_name, tuple(names), plans.answers)
            for plans, names in applied.items()
        )
        return Report(layers, {}, time.perf_counter() - started, self._plans_s)

    def _quantized(self) -> dict[str, tuple[str, ...]]:
        """The last names of the tensors of each linear that has any of the format's."""
        known = names_of(self._scheme)
        found: dict[str, list[str]] = {}
        for name in self._checkpoint.names:
            linear, _, last = name.rpartition(".")
            if last in known:
                found.setdefault(linear, []).append(last)
            elif last in _WEIGHTS:
                raise FormatError(
                    f"{name} is not of the format {self._scheme.format} that quantization_config names;"
                    " a checkpoint of several formats is not read"
                )
        return {linear: tuple(held) for linear, held in found.items()}

    def _linear(self, name: str, held: tuple[str, ...], model: torch.nn.Module) -> _Linear:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = None
        if not isinstance(module, torch.nn.Linear):
            what = "has no such module" if module is None else f"has a {type(module).__name__} there"
            raise FormatError(
                f"{name} is quantized, but {type(model).__name__} {what}; only linears are read"
            )
        if f"{name}.weight" in getattr(model, "all_tied_weights_keys", {}):
            raise FormatError(f"{name} is quantized, but tied to other weights by tie_word_embeddings")
        with _named(name):
            return _Linear(name, self._layer(name, held, module), held)

    def _layer(self, name: str, held: tuple[str, ...], module: torch.nn.Linear) -> Layer:
        layer = layer_of({last: self._checkpoint[f"{name}.{last}"] for last in held}, self._scheme)
        if (layer.n, layer.k) != (module.out_features, module.in_features):
            raise FormatError(
                f"has n={layer.n}, k={layer.k} as {self._scheme.bits}-bit weights, but the model's linear"
                f" has n={module.out_features}, k={module.in_features}"
            )
        bias = f"{name}.bias"
        if bias not in self._checkpoint.names:
            if module.bias is not None:
                raise FormatError("has no tensor bias, which the model's linear has")
        elif tuple(self._checkpoint[bias].shape) != (layer.n,):
            raise FormatError(f"bias is {list(self._checkpoint[bias].shape)}, expected [{layer.n}]")
        return layer

    def _check_others(self, model: torch.nn.Module, linears: dict[str, _Linear]) -> None:
        for name, expected in model.state_dict().items():
            if name in self._checkpoint.names and name.rpartition(".")[0] not in linears:
                shape = list(self._checkpoint[name].shape)
                if shape != list(expected.shape):
                    raise FormatError(f"{name} is {shape}, expected {list(expected.shape)}")

    def _planned(self, name: str, layer: Layer, linears: tuple[_Linear, ...]) -> _Group:
        with _named(name):
            return _Group(name, linears, plans_for(layer, self._lookup))

    def _put(self, model: torch.nn.Module, group: _Group) -> dict[str, LayerPlans]:
        """Put one group's linears in; the plans of each that is new, by name."""
        found = [self._read(linear) for linear in group.linears]
        if len(found) == 1 or not _same_order([unpacked for unpacked, _ in found]):
            placed = {linear.name: plans_for(linear.layer, self._lookup) for linear in group.linears}
            for (name, plans), (unpacked, bias) in zip(placed.items(), found, strict=True):
                _set(model, name, Int4Linear(unpacked.weight, bias, plans, unpacked.perm))
            return placed
        layers = [linear.layer for linear in group.linears]
        bias = concatenated_bias([bias for _, bias in found], layers)
        perm = found[0][0].perm
        weight = concatenated([unpacked.weight for unpacked, _ in found], group.plans.layer)
        # The parts go before the whole is packed.
        found.clear()
        whole = Int4Linear(weight, bias, group.plans, perm)
        _set(model, group.name, whole)
        for linear, part in zip(group.linears, parts(whole, [layer.n for layer in layers]), strict=True):
            _set(model, linear.name, part)
        return {group.name: group.plans}

    def _read(self, linear: _Linear) -> tuple[Unpacked, torch.Tensor | None]:
        device = self._lookup.device.torch_name
        with _named(linear.name):
            held = {last: self._checkpoint[f"{linear.name}.{last}"].to(device) for last in linear.tensors}
            unpacked = read(held, self._scheme)
        if f"{linear.name}.bias" not in self._checkpoint.names:
            return unpacked, None
        bias = self._checkpoint[f"{linear.name}.bias"].to(device)
        # AutoGPTQ stores zeros for linears without a bias.
        return unpacked, bias if bool(bias.any()) else None


def _grouped(linears: dict[str, _Linear], fuse: bool) -> Iterator[tuple[str, Layer, tuple[_Linear, ...]]]:
    """Each linear with its name and layer, or those that can be fused with those of the whole."""
    rest = dict(linears)
    wholes = FUSED if fuse else {}
    for name, linear in linears.items():
        parent = name.rpartition(".")[0]
        for whole, children in wholes.items():
            siblings = [rest[part] for child in children if (part := f"{parent}.{child}") in rest]
            layer = fused_layer([sibling.layer for sibling in siblings]) if linear in siblings else None
            if layer is not None and len(siblings) == len(children):
                for sibling in siblings:
                    del rest[sibling.name]
                yield f"{parent}.{whole}", layer, tuple(siblings)
        if rest.pop(name, None) is not None:
            yield name, linear.layer, (linear,)


def _same_order(linears: list[Unpacked]) -> bool:
    """Whether all take the columns of x in one order."""
    first = linears[0].perm
    if first is None:
        return all(linear.perm is None for linear in linears)
    return all(linear.perm is not None and torch.equal(linear.perm, first) for linear in linears)


def _set(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.eval())


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the name of the linear before an error's message."""
    try:
        yield
    except AutotuneError as error:
        raise type(error)(f"{name}: {error}") from None
