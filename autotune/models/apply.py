"""Swap a model's int4 linears for tuned ones, in place, whatever library loaded them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.formats import modules
from autotune.models.advice import sweep_command
from autotune.models.extras import check_extras, take_over
from autotune.models.report import LayerReport, Report
from autotune.records.lookup import Lookup
from autotune.runtime.linear import Int4Linear
from autotune.runtime.plans import LayerPlans, plans_for
from autotune.runtime.saving import guard_writers
from autotune.values.counts import counted
from autotune.values.device import find_device
from autotune.values.errors import AutotuneError, FormatError
from autotune.values.layer import Problem
from autotune.values.paths import Location
from autotune.values.policy import Policy, policy_in_force

if TYPE_CHECKING:
    from autotune.runtime.external import Kernel
    from autotune.values.device import Device


def apply(
    model: torch.nn.Module,
    *,
    db: Location | None = None,
    device: str | None = None,
    kernels: Sequence[Kernel] = (),
    policy: str | None = None,
) -> Report:
    """Swap every int4 linear inside `model` for an `Int4Linear`; what cannot be swapped stays.

    A linear is known by its tensors, not by its class: those of AutoAWQ, llm-awq, GPTQ and GPTQModel,
    compressed-tensors and Marlin, of one kind or several. Scales become what the rest of the model computes
    in, where that can be told. `db` is the database to look in, by default the one in force; its
    troubles are warnings. `device` moves each linear there as it is packed (the rest of the model then
    follows by `model.to`); by default it stays where its tensors are. `kernels` are those that
    `autotune.kernel` made of what the model's own modules run: a module that has the tunables of one as
    attributes, as `split_k_iters`, is given their best values for one token instead of being swapped.
    `policy` is what to choose configs by: `fast`, `deterministic`, `batch_invariant` or `efficient`; by
    default that of AUTOTUNE_POLICY, or `fast`.

    Forward hooks go over to the tuned linear, whose kernel they see as the module. A module that does more
    than multiply otherwise stays: a forward of its own, modules or parameters inside, quantized activations.

    No checkpoint holds packed weights, so `save_pretrained` and `push_to_hub` refuse a model with any.

    Everything that can fail comes first: plans are made before any weight is touched, so that a linear
    without a kernel keeps its tensors and is listed in `Report.skipped`.

    Raises:
        DeviceError: `device` names none that is here.
        FormatError: `model` is no module.
        ConfigError: there is no such policy.
    """
    if not isinstance(model, torch.nn.Module):
        kind = type(model).__name__
        raise FormatError(f"apply takes a loaded model, a torch.nn.Module, not {kind}; load takes a folder")
    target = None if device is None else find_device(device)
    work = _Work(db, target, kernels, policy_in_force(policy))
    started = time.perf_counter()
    work.plan_all(model)
    planned = time.perf_counter()
    guard_writers(model)
    work.swap_all(model)
    _synchronize(work.devices())
    report = Report(work.layers(), work.skipped, time.perf_counter() - planned, planned - started)
    if work.failed:
        reason = work.skipped[work.failed[0]]
        warnings.warn(
            f"left alone: {counted(len(work.failed), 'int4 linear')}; the first: {reason}", stacklevel=2
        )
    if report.untuned:
        warn_untuned(report.untuned, db)
    return report


@dataclass
class _Found:
    """One quantized linear, under every name that it has in the model."""

    names: list[str]
    plans: LayerPlans


class _Work:
    """What is to be swapped, and by which plans."""

    def __init__(
        self, db: Location | None, target: Device | None, kernels: Sequence[Kernel], policy: Policy
    ) -> None:
        self._db, self._policy = db, policy
        self._target = target
        self._kernels = kernels
        self._lookups: dict[tuple[Device, str | None], Lookup] = {}
        self._dtype: torch.dtype | None = None
        self._found: dict[int, _Found] = {}
        self.skipped: dict[str, str] = {}
        self.failed: list[str] = []
        """Those of the skipped ones that could be read."""

    def plan_all(self, model: torch.nn.Module) -> None:
        """Make the plans of every quantized linear, or note why it is skipped; no module is held."""
        self._dtype = _computes_in(model)
        for name, module in model.named_modules(remove_duplicate=False):
            self._plan(name, module)

    def _plan(self, name: str, module: torch.nn.Module) -> None:
        if id(module) in self._found:
            self._found[id(module)].names.append(name)
        elif isinstance(module, Int4Linear):
            self.skipped[name] = "is an Int4Linear already"
        elif modules.is_quantized(module):
            try:
                found = modules.find(module, self._dtype)
            except AutotuneError as error:
                self.skipped[name] = str(error)
                return
            try:
                kept = self._given_best(module, found)
                if kept is not None:
                    self.skipped[name] = kept
                    return
                if not name:
                    raise FormatError("is the model itself and has no parent to swap it in")
                lookup = self._lookup(found.device)
                if not self._keeps_extras(name, module, lookup):
                    self._found[id(module)] = _Found([name], plans_for(found.layer, lookup))
            except AutotuneError as error:
                self._fail([name], error)

    def _keeps_extras(self, name: str, module: torch.nn.Module, lookup: Lookup) -> bool:
        """Whether the module stays because it does more than multiply; the reason is noted."""
        try:
            check_extras(module, lookup.device.torch_name)
        except FormatError as error:
            self.skipped[name] = str(error)
            return True
        return False

    def swap_all(self, model: torch.nn.Module) -> None:
        """Put the tuned linears in one by one, so that old tensors go before the next layer is packed."""
        for found in list(self._found.values()):
            try:
                tuned = self._tuned(model.get_submodule(found.names[0]), found.plans)
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

    def _tuned(self, old: torch.nn.Module, plans: LayerPlans) -> Int4Linear:
        found = modules.find(old, self._dtype)
        linear = found.read(plans.device.torch_name)
        tuned = Int4Linear(linear.weight, found.bias, plans, linear.perm).train(old.training)
        take_over(old, tuned)
        return tuned

    def _given_best(self, module: torch.nn.Module, found: modules.Found) -> str | None:
        """What the module runs from now on, if it has the tunables of one of the kernels."""
        for kernel in self._kernels:
            if kernel.kind == found.device.type:
                lookup = self._lookup(found.device, kernel)
                if kernel.set_best(module, found.layer, lookup=lookup):
                    return f"keeps its own kernel, now {lookup.answer(Problem(found.layer, 1)).config}"
        return None

    def _lookup(self, place: torch.device, kernel: Kernel | None = None) -> Lookup:
        device = (None if kernel else self._target) or find_device(str(place))
        key = (device, kernel.name if kernel else None)
        if key not in self._lookups:
            name = device.torch_name
            self._lookups[key] = (
                kernel.lookup(name, self._db) if kernel else Lookup(device, self._db, policy=self._policy)
            )
        return self._lookups[key]


def _computes_in(model: torch.nn.Module) -> torch.dtype | None:
    """The dtype that x will have: the one 16-bit dtype of all that is not quantized, or fp32 if that is all.

    None when it cannot be told.
    """
    held: set[torch.dtype] = set()
    for module in model.modules():
        if not isinstance(module, Int4Linear) and not modules.is_quantized(module):
            held.update(tensor.dtype for tensor in module.parameters(recurse=False))
    candidates = held & {torch.float16, torch.bfloat16} or held & {torch.float32}
    return candidates.pop() if len(candidates) == 1 else None


def _synchronize(devices: set[Device]) -> None:
    """Wait for the packing to end, so that its time is told as it is."""
    for device in devices:
        if device.kind == "cuda":
            torch.cuda.synchronize(device.torch_name)


def warn_untuned(untuned: tuple[LayerReport, ...], db: Location | None) -> None:
    """Say for how many linears nothing was measured, and the command that tunes them."""
    linears = sum(len(report.names) for report in untuned)
    on_cpu = all(report.device == "cpu" for report in untuned)
    command = sweep_command((report.layer for report in untuned), on_cpu, db)
    warnings.warn(
        f"no config was measured for {counted(linears, 'linear')}; to tune: {command}", stacklevel=3
    )
