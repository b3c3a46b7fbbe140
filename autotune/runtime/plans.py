"""The plans of a layer: what runs for each number of tokens, looked up and made ready once."""

from __future__ import annotations

import functools
import itertools
import warnings
import weakref
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autotune.device import Device, find_device
from autotune.errors import AutotuneError, CompileError, LaunchError
from autotune.kernels import registry
from autotune.kernels.building import build_all
from autotune.layer import BUCKETS, Layer, Problem
from autotune.paths import database_url
from autotune.runtime.lookup import Answer, Lookup
from autotune.runtime.misses import MARKS

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from autotune.config import Config
    from autotune.kernels.family import Plan, Unit

_handles = itertools.count()
_by_handle: weakref.WeakValueDictionary[int, LayerPlans] = weakref.WeakValueDictionary()


class LayerPlans:
    """For one layer on one device: an answer and a plan for every bucket.

    `handle` names the plans to the op for as long as something holds them. A config whose kernel cannot be
    made gives way to the default config, with one warning for each Lookup.

    Raises:
        CompileError, LaunchError: the kernel of the default config cannot be made either.
        DeviceError: no family on the device can do the layer.
    """

    def __init__(self, layer: Layer, lookup: Lookup) -> None:
        self.layer = layer
        self.device = lookup.device
        answers = [lookup.answer(Problem(layer, bucket)) for bucket in BUCKETS]
        maker = _Maker(layer, lookup, {answer.config for answer in answers})
        ready = [maker.ready(answer) for answer in answers]
        self.answers = tuple(answer for answer, _ in ready)
        self._plans = tuple(plan for _, plan in ready)
        self._tally = lookup.tally(self.answers)
        self._calls = self._tally.calls
        weakref.finalize(self, self._tally.note_all)
        self.handle = next(_handles)
        _by_handle[self.handle] = self

    def plan(self, m: int) -> Plan:
        """The plan for m >= 1 tokens: that of the smallest bucket >= m, of the largest above that.

        Who asks will call it: a bucket without a record is tuned the sooner, the more it is called.
        """
        # Bucket i is 2**i.
        bucket = min((m - 1).bit_length(), len(BUCKETS) - 1)
        calls = self._calls[bucket] = self._calls[bucket] + 1
        if calls in MARKS:
            self._tally.note(bucket)
        return self._plans[bucket]

    def __deepcopy__(self, memo: object) -> LayerPlans:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        # A handle means nothing in another process, or another layer.
        return _plans_here, (self.layer, self.device.torch_name)


def plans_of(handle: int) -> LayerPlans:
    """The plans with this handle; KeyError when nothing holds them any more."""
    return _by_handle[handle]


def plans_for(layer: Layer, lookup: Lookup) -> LayerPlans:
    """The plans of the layer by this Lookup, made once and shared by every linear of the layer.

    Raises:
        CompileError, LaunchError, DeviceError: as LayerPlans, which is not tried again.
    """
    known = _known.setdefault(lookup, _Known({}))
    if layer not in known.plans:
        try:
            known.plans[layer] = LayerPlans(layer, lookup)
        except AutotuneError as error:
            known.plans[layer] = copy(error)
    plans = known.plans[layer]
    if isinstance(plans, AutotuneError):
        # A copy, because a traceback would hold on to the caller's tensors.
        raise copy(plans)
    return plans


def _plans_here(layer: Layer, place: str) -> LayerPlans:
    """The plans that a pickled linear gets where it is read: by the database in force there."""
    return plans_for(layer, default_lookup(find_device(place)))


def device_of(tensor: torch.Tensor) -> Device:
    """The device that the tensor lives on.

    Raises:
        DeviceError: no kernel runs there.
    """
    return find_device(str(tensor.device))


def default_lookup(device: Device) -> Lookup:
    """The process's Lookup for linears that are made one at a time; it reads the database once."""
    return _lookup_of(device, database_url())


@functools.cache
def _lookup_of(device: Device, url: str) -> Lookup:
    return Lookup(device, url)


@dataclass
class _Known:
    """What was made by one Lookup."""

    plans: dict[Layer, LayerPlans | AutotuneError]
    warned: bool = False


_known: weakref.WeakKeyDictionary[Lookup, _Known] = weakref.WeakKeyDictionary()


class _Maker:
    """Makes the plans of one layer, one for each distinct config."""

    def __init__(self, layer: Layer, lookup: Lookup, configs: Iterable[Config]) -> None:
        self._layer = layer
        self._lookup = lookup
        self._units: dict[Config, Unit | None] = {}
        self._cubins: dict[str, bytes | CompileError] = {}
        self._plans: dict[Config, Plan | CompileError | LaunchError] = {}
        self._fetch(self._unit(config) for config in configs)

    def ready(self, answer: Answer) -> tuple[Answer, Plan]:
        """The answer with its plan, or the default config and its plan when that config has none."""
        plan = self._plan(answer.config)
        if not isinstance(plan, Exception):
            return answer, plan
        default = registry.default_config(answer.problem, self._lookup.device)
        fallback = self._plan(default)
        if isinstance(fallback, Exception):
            raise fallback
        self._warn(answer.config, plan)
        reason = f"{answer.config} cannot be made: {plan}"
        unmeasured = replace(answer, median_us=None, default_us=None, record=None)
        return replace(unmeasured, config=default, source="default", reason=reason), fallback

    def _plan(self, config: Config) -> Plan | CompileError | LaunchError:
        if config not in self._plans:
            try:
                self._plans[config] = self._make(config)
            except (CompileError, LaunchError) as error:
                self._plans[config] = error
        return self._plans[config]

    def _make(self, config: Config) -> Plan:
        cubin: bytes | CompileError | None = None
        unit = self._unit(config)
        if unit is not None:
            self._fetch([unit])
            cubin = self._cubins[unit.key]
        if isinstance(cubin, CompileError):
            raise cubin
        return registry.family_of(config).plan(config, self._layer, self._lookup.device, cubin)

    def _unit(self, config: Config) -> Unit | None:
        if config not in self._units:
            family = registry.family_of(config)
            self._units[config] = family.unit(config, self._layer, self._lookup.device)
        return self._units[config]

    def _fetch(self, units: Iterable[Unit | None]) -> None:
        """Have the cubins of the units: the database's, and from the compiler, in parallel, what it lacks."""
        new = {unit.key: unit for unit in units if unit is not None and unit.key not in self._cubins}
        stored = {key: self._lookup.binary(key) for key in new}
        self._cubins.update((key, cubin) for key, cubin in stored.items() if cubin is not None)
        missing = [unit for key, unit in new.items() if key not in self._cubins]
        if missing:
            try:
                self._cubins.update(build_all(missing))
            except CompileError as error:
                self._cubins.update((unit.key, error) for unit in missing)

    def _warn(self, config: Config, error: Exception) -> None:
        known = _known.setdefault(self._lookup, _Known({}))
        if not known.warned:
            known.warned = True
            warnings.warn(f"running a default config, because {config} cannot be made: {error}", stacklevel=2)
