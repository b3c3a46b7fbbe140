"""A checkpoint's int4 linears, planned before a model's other weights are read and packed after them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from autotune.checkpoints.fusion import ARCHITECTURES, FUSED, grouped
from autotune.formats import TensorScheme, Unpacked, layer_of, names_of, read
from autotune.models.checkpoint import Checkpoint
from autotune.models.contents import Contents, StoredLinear, contents_of
from autotune.models.dense import dense_linear, padded
from autotune.models.fused import concatenated, concatenated_bias, parts
from autotune.models.report import LayerReport, Report
from autotune.records.lookup import Lookup
from autotune.runtime.linear import Int4Linear
from autotune.runtime.plans import LayerPlans, plans_for
from autotune.values.errors import AutotuneError, DeviceError, FormatError, LayerError
from autotune.values.layer import Layer


@dataclass(frozen=True)
class _Group:
    """Linears that become one: several are fused under the name `name`."""

    name: str
    linears: tuple[str, ...]
    plans: LayerPlans


class Linears:
    """The int4 linears of a model that is being loaded: `prepare`, load all other weights, `fill`."""

    def __init__(self, checkpoint: Checkpoint, scheme: TensorScheme, lookup: Lookup, *, fuse: bool) -> None:
        self._checkpoint = checkpoint
        self._scheme = scheme
        self._lookup = lookup
        self._fuse = fuse
        self._contents = Contents({}, {})
        self._layers: dict[str, Layer] = {}
        self._dense: dict[str, AutotuneError] = {}
        """Those that no kernel takes."""
        self._groups: list[_Group] = []
        self._plans_s = 0.0

    def prepare(self, model: torch.nn.Module, model_type: str) -> str:
        """Plan every int4 linear, and take it out of the model, which is on the meta device.

        All that can be told without reading weights is checked here. Returned is a regular expression that
        finds the names of the tensors that `fill` reads.

        Raises:
            FormatError, LayerError, DeviceError: the checkpoint does not fit the model or no kernel takes
                any of it; the message has the name of the tensor.
            CompileError, LaunchError: as LayerPlans.
        """
        self._contents = contents_of(self._checkpoint, self._scheme, model)
        for name, stored in self._contents.linears.items():
            with _named(name):
                self._check(name, stored)
        started = time.perf_counter()
        self._groups = list(self._planned(fuse=self._fuse and model_type in ARCHITECTURES))
        self._plans_s = time.perf_counter() - started
        if not self._groups:
            name, error = next(iter(self._dense.items()))
            raise type(error)(f"{name}: {error}")
        for name, stored in self._contents.linears.items():
            _set(model, name, _StandIn(stored))
        placed = (*self._contents.linears, *self._contents.activations)
        children = {name.rpartition(".")[2] for name in placed}
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
        for name in self._dense:
            self._put_dense(model, name)
        for name, tensor in self._contents.activations.items():
            scales = self._checkpoint[tensor].to(self._device, self._scheme.dtype, copy=True)
            _set(model, name, ScaledActivation(model.get_submodule(name), scales))
        if self._lookup.device.kind == "cuda":
            torch.cuda.synchronize(self._device)
        layers = tuple(
            LayerReport(plans.layer, plans.device.torch_name, tuple(names), plans.answers)
            for plans, names in applied.items()
        )
        dense = {name: f"is a dense linear, because {error}" for name, error in self._dense.items()}
        return Report(layers, dense, time.perf_counter() - started, self._plans_s)

    @property
    def _device(self) -> str:
        return self._lookup.device.torch_name

    def _check(self, name: str, stored: StoredLinear) -> None:
        """Note the linear's layer, which has to be that of the model's; or that no kernel takes it."""
        tensors = self._tensors(stored)
        try:
            layer = layer_of(tensors, self._scheme)
            n, k = layer.n, layer.k
        except LayerError as error:
            whole = padded(tensors, self._scheme)
            try:
                layer = layer_of(whole.tensors, self._scheme)
            except AutotuneError:
                raise error from None
            n, k = layer.n - whole.rows, layer.k - whole.columns
            self._dense[name] = error
        if (n, k) != (stored.n, stored.k):
            raise FormatError(
                f"has n={n}, k={k} as {self._scheme.bits}-bit weights, but the model's linear"
                f" has n={stored.n}, k={stored.k}"
            )
        bias = f"{stored.source}.bias"
        if bias not in self._checkpoint.names:
            if stored.biased:
                raise FormatError("has no tensor bias, which the model's linear has")
        elif tuple(self._checkpoint[bias].shape) != (n,):
            raise FormatError(f"bias is {list(self._checkpoint[bias].shape)}, expected [{n}]")
        self._layers[name] = layer

    def _planned(self, *, fuse: bool) -> Iterator[_Group]:
        """The groups that kernels take; the linears of others are noted as dense."""
        taken = {name: layer for name, layer in self._layers.items() if name not in self._dense}
        for name, layer, linears in grouped(taken, FUSED if fuse else {}):
            with _named(name):
                try:
                    yield _Group(name, linears, plans_for(layer, self._lookup))
                except (DeviceError, LayerError) as error:
                    self._dense |= dict.fromkeys(linears, error)

    def _put(self, model: torch.nn.Module, group: _Group) -> dict[str, LayerPlans]:
        """Put one group's linears in; the plans of each that is new, by name."""
        found = [self._read(name) for name in group.linears]
        layers = [self._layers[name] for name in group.linears]
        if len(found) == 1 or not _same_order([unpacked for unpacked, _ in found]):
            placed = {
                name: plans_for(layer, self._lookup)
                for name, layer in zip(group.linears, layers, strict=True)
            }
            for (name, plans), (unpacked, bias) in zip(placed.items(), found, strict=True):
                _set(model, name, Int4Linear(unpacked.weight, bias, plans, unpacked.perm))
            return placed
        bias = concatenated_bias([bias for _, bias in found], layers)
        perm = found[0][0].perm
        weight = concatenated([unpacked.weight for unpacked, _ in found], group.plans.layer)
        # The parts go before the whole is packed.
        found.clear()
        whole = Int4Linear(weight, bias, group.plans, perm)
        _set(model, group.name, whole)
        for name, part in zip(group.linears, parts(whole, [layer.n for layer in layers]), strict=True):
            _set(model, name, part)
        return {group.name: group.plans}

    def _put_dense(self, model: torch.nn.Module, name: str) -> None:
        stored = self._contents.linears[name]
        with _named(name):
            tensors, bias = self._tensors(stored, self._device), self._bias(stored)
            _set(model, name, dense_linear(tensors, self._scheme, bias))

    def _read(self, name: str) -> tuple[Unpacked, torch.Tensor | None]:
        stored = self._contents.linears[name]
        with _named(name):
            return read(self._tensors(stored, self._device), self._scheme), self._bias(stored)

    def _tensors(self, stored: StoredLinear, device: str | None = None) -> dict[str, torch.Tensor]:
        """The tensors of a linear by their last names; those of the mapped file without a device."""
        return {last: self._checkpoint[f"{stored.source}.{last}"].to(device) for last in stored.tensors}

    def _bias(self, stored: StoredLinear) -> torch.Tensor | None:
        """A copy of the linear's bias."""
        bias = f"{stored.source}.bias"
        if bias not in self._checkpoint.names:
            return None
        held = self._checkpoint[bias].to(self._device, copy=True)
        # AutoGPTQ stores zeros for linears without a bias.
        return held if bool(held.any()) else None


class _StandIn(torch.nn.Identity):
    """A linear that comes later: no parameters, which transformers would allocate.

    Models may initialize a linear's weight and bias by name, so there are some, without memory.
    """

    def __init__(self, stored: StoredLinear) -> None:
        super().__init__()
        self.weight = torch.empty((stored.n, stored.k), device="meta")
        self.bias = torch.empty(stored.n, device="meta") if stored.biased else None


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


class ScaledActivation(torch.nn.Module):
    """act(x) / scales, for scales of one row of act(x): AWQ multiplied the next linear's weight by them."""

    scales: torch.Tensor

    def __init__(self, act: torch.nn.Module, scales: torch.Tensor) -> None:
        super().__init__()
        self.act = act
        self.register_buffer("scales", scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """out[..., k] of x[..., k], in the dtype of x."""
        out: torch.Tensor = self.act(x) / self.scales
        return out
