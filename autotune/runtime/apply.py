"""Swap a model's AutoAWQ-style linears for tuned ones, in place."""

from __future__ import annotations

import shlex
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.device import find_device
from autotune.errors import AutotuneError, FormatError
from autotune.formats import awq_gemm
from autotune.runtime.linear import Int4Linear
from autotune.runtime.lookup import Lookup
from autotune.runtime.plans import LayerPlans, device_of, plans_for
from autotune.runtime.report import LayerReport, Report

if TYPE_CHECKING:
    from autotune.device import Device
    from autotune.layer import Layer


def apply(model: torch.nn.Module, *, db: str | None = None, device: str | None = None) -> Report:
    """Swap every AutoAWQ "gemm" linear inside `model` for an `Int4Linear`; what cannot be swapped stays.

    A linear is known by its tensors, not by its class: `w_bit` or `bits` is 4, `qweight`, `qzeros` and
    `scales` have the layout's shapes. `db` is the database to look in, by default the one in force; its
    troubles are warnings. `device` moves each linear there as it is packed (the rest of the model then
    follows by `model.to`); by default it stays where its tensors are.

    Everything that can fail comes first: plans are made before any weight is touched, so that a linear
    without a kernel keeps its tensors and is listed in `Report.skipped`.

    Raises:
        DeviceError: `device` names none that is here.
    """
    target = None if device is None else find_device(device)
    work = _Work(db, target)
    started = time.perf_counter()
    work.plan_all(model)
    planned = time.perf_counter()
    work.swap_all(model)
    _synchronize(work.devices())
    report = Report(work.layers(), work.skipped, time.perf_counter() - planned, planned - started)
    if work.failed:
        reason = work.skipped[work.failed[0]]
        warnings.warn(f"{len(work.failed)} int4 linears stay as they were: {reason}", stacklevel=2)
    if report.untuned:
        _warn_untuned(report.untuned, db)
    return report


@dataclass
class _Found:
    """One quantized linear, under every name that it has in the model."""

    names: list[str]
    plans: LayerPlans


class _Work:
    """What is to be swapped, and by which plans."""

    def __init__(self, db: str | None, target: Device | None) -> None:
        self._db = db
        self._target = target
        self._lookups: dict[Device, Lookup] = {}
        self._found: dict[int, _Found] = {}
        self.skipped: dict[str, str] = {}
        self.failed: list[str] = []
        """Those of the skipped ones that are int4 gemm linears."""

    def plan_all(self, model: torch.nn.Module) -> None:
        """Make the plans of every quantized linear, or note why it is skipped; no module is held."""
        for name, module in model.named_modules(remove_duplicate=False):
            self._plan(name, module)

    def _plan(self, name: str, module: torch.nn.Module) -> None:
        if id(module) in self._found:
            self._found[id(module)].names.append(name)
        elif isinstance(module, Int4Linear):
            self.skipped[name] = "is an Int4Linear already"
        elif isinstance(getattr(module, "qweight", None), torch.Tensor) or hasattr(module, "weight_packed"):
            try:
                layer, tensor = _layer_of(module)
            except AutotuneError as error:
                self.skipped[name] = str(error)
                return
            try:
                if not name:
                    raise FormatError("is the model itself and has no parent to swap it in")
                self._found[id(module)] = _Found([name], plans_for(layer, self._lookup(tensor)))
            except AutotuneError as error:
                self._fail([name], error)

    def swap_all(self, model: torch.nn.Module) -> None:
        """Put the tuned linears in one by one, so that old tensors go before the next layer is packed."""
        for found in list(self._found.values()):
            try:
                tuned = _tuned(model.get_submodule(found.names[0]), found.plans)
            except AutotuneError as error:
                self._fail(found.names, error)
                found.names = []
                continue
            for name in found.names:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, tuned)

    def layers(self) -> tuple[LayerReport, ...]:
        """What was swapped, by distinct layer and device."""
        names: dict[LayerPlans, list[str]] = {}
        for found in self._found.values():
            names.setdefault(found.plans, []).extend(found.names)
        return tuple(
            LayerReport(plans.layer, plans.device.torch_name, tuple(swapped), plans.answers)
            for plans, swapped in names.items()
            if swapped
        )

    def devices(self) -> set[Device]:
        """Where the swapped linears live."""
        return {found.plans.device for found in self._found.values()}

    def _fail(self, names: list[str], error: AutotuneError) -> None:
        self.failed += names
        self.skipped.update(dict.fromkeys(names, str(error)))

    def _lookup(self, tensor: torch.Tensor) -> Lookup:
        device = self._target or device_of(tensor)
        if device not in self._lookups:
            self._lookups[device] = Lookup(device, self._db)
        return self._lookups[device]


def _layer_of(module: torch.nn.Module) -> tuple[Layer, torch.Tensor]:
    """The layer of an AutoAWQ-style gemm linear by its tensors, one of which is given too.

    Raises:
        FormatError, LayerError: the module is something else.
    """
    bits = getattr(module, "w_bit", getattr(module, "bits", None))
    if bits != 4:
        raise FormatError(f"bits={bits}; only 4-bit weights are tuned")
    if getattr(module, "g_idx", None) is not None:
        raise FormatError("is in the GPTQ layout; only AutoAWQ gemm is tuned")
    tensors = _tensors(module)
    if any(tensor.is_meta for tensor in tensors):
        raise FormatError("has no weights yet: its tensors are on the meta device")
    layer = awq_gemm.layer_of(*tensors)
    for name, size in (("in_features", layer.k), ("out_features", layer.n)):
        if getattr(module, name, size) != size:
            raise FormatError(f"{name}={getattr(module, name)}, but its tensors say {size}")
    return layer, tensors[0]


def _tensors(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _tensor(module, "qweight"), _tensor(module, "qzeros"), _tensor(module, "scales")


def _tensor(module: torch.nn.Module, name: str) -> torch.Tensor:
    tensor = getattr(module, name, None)
    if not isinstance(tensor, torch.Tensor):
        raise FormatError(f"has no tensor {name}; only AutoAWQ gemm is tuned")
    return tensor


def _tuned(old: torch.nn.Module, plans: LayerPlans) -> Int4Linear:
    target = plans.device.torch_name
    qweight, qzeros, scales = (tensor.detach().to(target) for tensor in _tensors(old))
    weight = awq_gemm.to_quantized(qweight, qzeros, scales)
    return Int4Linear(weight, getattr(old, "bias", None), plans).train(old.training)


def _synchronize(devices: set[Device]) -> None:
    """Wait for the packing to end, so that its time is told as it is."""
    for device in devices:
        if device.kind == "cuda":
            torch.cuda.synchronize(device.torch_name)


def _warn_untuned(untuned: tuple[LayerReport, ...], db: str | None) -> None:
    """Say how many linears run what was not measured for them, and the command that tunes them."""
    linears = sum(len(report.names) for report in untuned)
    shapes = ";".join(dict.fromkeys(str(report.layer) for report in untuned))
    command = ["autotune", "sweep", "--shapes", shapes]
    if all(report.device == "cpu" for report in untuned):
        command += ["--device", "cpu"]
    if db is not None:
        command += ["--db", db]
    warnings.warn(
        f"{linears} linears run configs that were not measured for them; to tune: {shlex.join(command)}",
        stacklevel=3,
    )
