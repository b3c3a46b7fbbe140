"""The plans of a layer: what runs for each number of tokens, looked up and made ready once."""

from __future__ import annotations

import functools
import threading
import weakref
from bisect import bisect_left
from collections import Counter
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.layouts.packed import form_of
from autotune.records.lookup import Answer, Lookup
from autotune.records.misses import MARKS, Tally
from autotune.runtime.handle import check_kind, handle_of, origin_of
from autotune.runtime.making import Maker
from autotune.values.device import Device, find_device
from autotune.values.errors import AutotuneError, DeviceError
from autotune.values.layer import BUCKETS, Layer, Problem
from autotune.values.paths import database_url
from autotune.values.policy import Policy, policy_in_force

if TYPE_CHECKING:
    from collections.abc import Iterable

    from autotune.families.protocol import Plan
    from autotune.values.config import Config

_CHECKED_AT_MOST = 1 << 16
_LARGEST = BUCKETS[-1]

_by_handle: weakref.WeakValueDictionary[tuple[str, int], LayerPlans] = weakref.WeakValueDictionary()
"""By handle and index of the device, -1 for the CPU, as a tensor's `get_device()` says."""
_known: weakref.WeakKeyDictionary[Lookup, dict[Layer, LayerPlans | AutotuneError]] = (
    weakref.WeakKeyDictionary()
)
"""What was made by each Lookup, or why it cannot be."""


@dataclass(frozen=True, slots=True)
class _Current:
    """What runs for each number of tokens: one value, so that a call sees the old state or the new one."""

    answers: tuple[Answer, ...]
    plans: tuple[Plan, ...]
    places: bytes
    tally: Tally
    missed: list[bool]


class LayerPlans:
    """For one layer on one device: its answers, by m, and a plan for each.

    `handle` names the plans to the op, and makes them anew where nothing holds them, also in another process;
    it stays when the plans are renewed, because compiled graphs hold it.
    A config whose kernel cannot be made gives way to the default config, with one warning for each Lookup.
    Of named kernels, which may not do every number of tokens, there are plans for those that they can do.

    Raises:
        CompileError, LaunchError: the kernel of the default config cannot be made either.
        DeviceError: no family on the device can do the layer.
    """

    def __init__(self, layer: Layer, lookup: Lookup) -> None:
        self.layer = layer
        self.device = lookup.device
        self.url, self.names, self.policy = lookup.url, lookup.names, lookup.policy
        self.form = form_of(layer, self.device.kind)
        self.checked: dict[tuple[int, ...], object] = {}
        self._made: dict[Config, Plan] = {}
        self._renewing = threading.Lock()
        self._before: Counter[int] = Counter()
        self._now = self._look(lookup, _answers(layer, lookup))
        self.handle = self._named()

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What was found for the numbers of tokens that have an answer of their own, by m."""
        return self._now.answers

    @property
    def calls(self) -> Counter[int]:
        """How often it was called, by the bucket that answered."""
        return self._before + _calls(self._now)

    def renew(self, lookup: Lookup) -> None:
        """From the next call on, run what this Lookup answers; a call that runs meanwhile keeps its plan.

        Every plan stays that was ever made, because a captured graph may hold its kernel.

        Raises:
            CompileError, LaunchError, DeviceError: as LayerPlans; then nothing has changed.
        """
        with self._renewing:
            found = _answers(self.layer, lookup)
            if found != self._now.answers:
                before, self._now = self._now, self._look(lookup, found)
                self._before.update(_calls(before))
                before.tally.note_all()
                self._named()

    def plan(self, m: int) -> Plan:
        """The plan for m >= 1 tokens: that of the first answer for as many or more, or of the last.

        Who asks will call it: what has no record is tuned the sooner, the more it is called.
        """
        now = self._now
        place = now.places[m] if m <= _LARGEST else -1
        tally = now.tally
        calls = tally.calls[place] = tally.calls[place] + 1
        if calls in MARKS:
            tally.note(place)
        if now.missed[place] and torch.cuda.is_current_stream_capturing():
            tally.capture(place)
        return now.plans[place]

    def answer(self, m: int) -> Answer:
        """The answer whose plan runs m >= 1 tokens."""
        now = self._now
        return now.answers[now.places[m] if m <= _LARGEST else -1]

    def _look(self, lookup: Lookup, found: tuple[Answer, ...]) -> _Current:
        maker = Maker(self.layer, lookup, found, self._made)
        answers, plans = zip(*map(maker.ready, found), strict=True)
        tally = lookup.tally(answers)
        weakref.finalize(self, tally.note_all)
        if self.names is not None:  # nobody tunes by himself what named kernels miss
            tally.missed = [False] * len(answers)
        # Only a GPU's calls can be captured.
        missed = tally.missed if self.device.kind == "cuda" else [False] * len(answers)
        return _Current(answers, plans, _places(tuple(answer.problem.m for answer in answers)), tally, missed)

    def _named(self) -> str:
        """The handle of what runs now; it leads here unless it leads to plans that were there before."""
        configs = {answer.problem.m: answer.config for answer in self.answers}
        of = (self.layer, self.device.kind, self.url, self.names)
        handle = handle_of(*of, configs, self.policy)
        # The first stay, because a captured graph may hold its kernels, and so does whoever comes later.
        _by_handle.setdefault((handle, _index(self.device)), self)
        return handle

    def note_checked(self, addresses: tuple[int, ...], state: object) -> None:
        """Note that the weight at these addresses, in this state, is whole and all of it is memory."""
        if len(self.checked) >= _CHECKED_AT_MOST:
            self.checked.clear()
        self.checked[addresses] = state

    def __deepcopy__(self, memo: object) -> LayerPlans:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return _plans_here, (self.handle, self.device.torch_name)


def plans_alive() -> list[LayerPlans]:
    """All that something in this process holds, each once."""
    return list(dict.fromkeys(filter(None, (known() for known in _by_handle.valuerefs()))))


def plans_of(handle: str, index: int) -> LayerPlans:
    """The plans with this handle on the GPU `index`, or on the CPU for -1; made if nothing holds them.

    Raises:
        LayerError: the handle names no layer.
        CompileError, LaunchError, DeviceError: as LayerPlans, or there is no such device.
    """
    plans = _by_handle.get((handle, index))
    return _made(handle, index) if plans is None else plans


def plans_for(layer: Layer, lookup: Lookup) -> LayerPlans:
    """The plans of the layer by this Lookup, made once and shared by every linear of the layer.

    Raises:
        CompileError, LaunchError, DeviceError: as LayerPlans, which is not tried again.
    """
    known = _known.setdefault(lookup, {})
    if layer not in known:
        try:
            made = LayerPlans(layer, lookup)
            known[layer] = _by_handle.get((made.handle, _index(made.device)), made)
        except AutotuneError as error:
            known[layer] = copy(error)
    plans = known[layer]
    if isinstance(plans, AutotuneError):
        # A copy, because a traceback would hold on to the caller's tensors.
        raise copy(plans)
    return plans


def renew_plans(plans: Iterable[LayerPlans]) -> None:
    """Have these plans look their layers up again, and all that are alike, whichever model runs them.

    Alike are plans of the same layer, device model and database; linears that are made later look it up
    again too. Plans of kernels of others stay as they are.

    Raises:
        CompileError, LaunchError, DeviceError: as LayerPlans; plans that were not renewed by then stay.
    """
    asked = set(plans)
    urls = {each.url for each in asked}
    # Other threads may make linears meanwhile, so what is gone over is a list.
    for lookup in filter(None, (known() for known in _known.keyrefs())):
        if lookup.url in urls:
            lookup.forget()
    alike = {_what(each) for each in asked}
    lookups: dict[tuple[Device, str, None, Policy], Lookup] = {}
    for each in asked.union(plans_alive()):
        if each.names is None and _what(each) in alike:
            place = each.device, each.url, None, each.policy
            if place not in lookups:
                lookups[place] = Lookup(*place)
            each.renew(lookups[place])


def _what(plans: LayerPlans) -> tuple[Layer, str, str, str]:
    return plans.layer, plans.device.name, plans.device.arch, plans.url


def _made(handle: str, index: int) -> LayerPlans:
    """Plans that a graph names which another process traced, or whose linears are gone."""
    origin = origin_of(handle)
    check_kind(origin, "cpu" if index < 0 else "cuda")
    device = find_device("cpu" if index < 0 else f"cuda:{index}")
    lookup = lookup_of(device, database_url(origin.db), origin.kernels, origin.policy)
    return _by_handle.setdefault((handle, index), plans_for(origin.layer, lookup))


def _plans_here(handle: str, place: str) -> LayerPlans:
    """The plans that a pickled linear gets where it is read: on its device, or another of that kind."""
    try:
        device = find_device(place)
    except DeviceError:
        device = find_device(origin_of(handle).kind)
    return plans_of(handle, _index(device))


def _answers(layer: Layer, lookup: Lookup) -> tuple[Answer, ...]:
    """The different answers to all numbers of tokens; with named kernels, to those that they can do."""
    if lookup.names is None:
        return lookup.answers(layer)
    able, refusal = [], None
    for m in BUCKETS:
        try:
            able.append(lookup.answer(Problem(layer, m)).problem.m)
        except DeviceError as error:
            refusal = error
    if refusal is not None and not able:
        raise refusal
    return lookup.answers(layer, able)


@functools.cache
def _places(answered: tuple[int, ...]) -> bytes:
    """For each m up to the largest bucket, the place of the first of these ascending numbers that is not
    smaller, or of the last.
    """
    last = len(answered) - 1
    return bytes(min(bisect_left(answered, m), last) for m in range(_LARGEST + 1))


def _calls(current: _Current) -> Counter[int]:
    tokens = (answer.problem.m for answer in current.answers)
    return Counter(dict(zip(tokens, current.tally.calls, strict=True)))


def _index(device: Device) -> int:
    return device.index if device.kind == "cuda" else -1


def device_of(tensor: torch.Tensor) -> Device:
    """The device that the tensor lives on.

    Raises:
        DeviceError: no kernel runs there.
    """
    return find_device(str(tensor.device))


def default_lookup(device: Device, policy: Policy | None = None) -> Lookup:
    """The process's Lookup for linears that are made one at a time; it reads the database once.

    Raises:
        ConfigError: AUTOTUNE_POLICY names none.
    """
    return lookup_of(device, database_url(), None, policy_in_force(policy))


@functools.cache
def lookup_of(device: Device, url: str, kernels: tuple[str, ...] | None, policy: Policy = "fast") -> Lookup:
    """The process's Lookup of that database, for these named kernels or for models."""
    return Lookup(device, url, kernels, policy)
