"""The plans of a layer's answers, from stored kernels and, where there are none, from a compiler."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autotune.families import registry
from autotune.jit.building import build_all
from autotune.jit.compiler import cached
from autotune.values.errors import CompileError, LaunchError
from autotune.values.layer import COARSE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from autotune.families.protocol import Plan
    from autotune.jit.unit import Unit
    from autotune.records.lookup import Answer, Lookup
    from autotune.values.config import Config
    from autotune.values.layer import Layer

MOST_COMPILED = 64
"""How many kernels of predicted configs are compiled for a Lookup when models load; some seconds of work.

Others run the next best config that has a kernel. `autotune prefetch` compiles them ahead.
"""


@dataclass
class _State:
    """Of one Lookup: whether a default took a config's place, and how many kernels may still be compiled."""

    warned: bool = False
    to_compile: int = MOST_COMPILED


_states: weakref.WeakKeyDictionary[Lookup, _State] = weakref.WeakKeyDictionary()


class Maker:
    """Makes the plans of one layer, one for each distinct config."""

    def __init__(
        self, layer: Layer, lookup: Lookup, answers: Iterable[Answer], made: dict[Config, Plan]
    ) -> None:
        """`made` are plans from before; those that are made now come in."""
        self._layer = layer
        self._lookup = lookup
        self._made = made
        self._units: dict[Config, Unit | None] = {}
        self._cubins: dict[str, bytes | CompileError] = {}
        self._failed: dict[Config, CompileError | LaunchError] = {}
        new = [answer for answer in answers if answer.config not in made]
        self._fetch(self._unit(answer.config) for answer in new if answer.prediction is None)
        self._fetch(self._affordable(answer for answer in new if answer.prediction is not None))

    def ready(self, answer: Answer) -> tuple[Answer, Plan]:
        """The answer with its plan, or the default config and its plan when that config has none."""
        answer = self._at_hand(answer)
        plan = self._plan(answer.config)
        if not isinstance(plan, Exception):
            return answer, plan
        default = self._lookup.fallback(answer.problem)
        if default is None:
            raise plan
        fallback = self._plan(default)
        if isinstance(fallback, Exception):
            raise fallback
        self._warn(answer.config, plan)
        reason = f"{answer.config} cannot be made: {plan}"
        unmeasured = replace(answer, median_us=None, default_us=None, record=None, prediction=None)
        return replace(unmeasured, config=default, source="default", reason=reason), fallback

    def _at_hand(self, answer: Answer) -> Answer:
        """The answer; of a predicted one without a kernel the next best that has one, if there is any."""
        ranked = (answer, *(() if self._has(answer.config) else self._lookup.alternatives(answer)))
        return next((each for each in ranked if self._has(each.config)), answer)

    def _has(self, config: Config) -> bool:
        """Whether a plan can be made without compiling."""
        unit = self._unit(config)
        if config in self._made or unit is None:
            return True
        if unit.key not in self._cubins:
            stored = self._lookup.binary(unit.key)
            if stored is None:
                return False
            self._cubins[unit.key] = stored
        return not isinstance(self._cubins[unit.key], CompileError)

    def _affordable(self, answers: Iterable[Answer]) -> list[Unit]:
        """Units of predicted answers that are stored or may be compiled; powers of two go first."""
        state = _states.setdefault(self._lookup, _State())
        chosen: dict[str, Unit] = {}
        for answer in sorted(answers, key=lambda each: each.problem.m not in COARSE):
            unit = self._unit(answer.config)
            if unit is None or unit.key in chosen or self._has(answer.config):
                continue
            if state.to_compile > 0:
                state.to_compile -= 0 if _is_cached(unit) else 1
                chosen[unit.key] = unit
        return list(chosen.values())

    def _plan(self, config: Config) -> Plan | CompileError | LaunchError:
        if config not in self._made and config not in self._failed:
            try:
                self._made[config] = self._make(config)
            except (CompileError, LaunchError) as error:
                self._failed[config] = error
        return self._failed.get(config) or self._made[config]

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
        state = _states.setdefault(self._lookup, _State())
        if not state.warned:
            state.warned = True
            warnings.warn(f"running a default config, because {config} cannot be made: {error}", stacklevel=2)


def _is_cached(unit: Unit) -> bool:
    try:
        return cached(unit) is not None
    except CompileError:  # there is no compiler
        return False
