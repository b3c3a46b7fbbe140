"""Tunes one problem: its candidates compiled, measured, and the winner made a record with its evidence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING

from autotune.config import Config
from autotune.device import Device
from autotune.errors import CompileError, LaunchError
from autotune.kernels import compiler, registry
from autotune.kernels.family import Plan
from autotune.layer import Problem
from autotune.record import Evidence, Mode, Record, Trial

if TYPE_CHECKING:
    from autotune.bench.operands import Operands

Cubins = dict[str, bytes | CompileError]
Progress = Callable[[str, int, int], None]
Notice = Callable[[Config | None], None]


@dataclass(frozen=True, slots=True)
class Tuned:
    """The trials of one problem and its record; without a record, `note` says why."""

    trials: tuple[Trial, ...]
    record: Record | None
    note: str = ""

    @property
    def failed(self) -> int:
        """How many configs failed or were wrong."""
        return sum(trial.status in ("failed", "wrong") for trial in self.trials)


def candidates_of(problem: Problem, device: Device, names: Collection[str] | None = None) -> list[Config]:
    """The problem's whole space, the default first; of autotune's families, or of those of these names."""
    default = registry.default_config(problem, device, names)
    return [default, *(config for config in registry.space(problem, device, names) if config != default)]


def compile_candidates(
    chosen: Iterable[tuple[Problem, Config]], device: Device, progress: Progress | None = None
) -> Cubins:
    """The cubin, or the error, of every unit that the configs need, by the unit's key."""
    units = {}
    for problem, config in chosen:
        unit = registry.family_of(config).unit(config, problem.layer, device)
        if unit is not None:
            units[unit.key] = unit
    if not units:  # a CPU's kernels are built in, and it may have no compiler
        return {}
    on_done = None if progress is None else functools.partial(progress, "compile")
    return compiler.build_all(units.values(), on_done=on_done)


def tune(
    problem: Problem,
    operands: Operands,
    candidates: Sequence[Config],
    cubins: Cubins,
    budget_s: float | None = None,
    crashed: Mapping[Config, str] = MappingProxyType({}),
    mode: Mode = "graph",
    notice: Notice = lambda _: None,
) -> Tuned:
    """Measure the candidates, the first of which is the default config, and choose the winner.

    Those that have `crashed` fail for the reason given there and are not run again. `notice` is called with
    each of the others before anything of it runs; None stands for several at once.
    """
    from autotune.bench.measure import measure

    device = operands.device

    def plan_of(config: Config) -> Plan:
        if config in crashed:
            raise LaunchError(crashed[config])
        notice(config)
        family = registry.family_of(config)
        unit = family.unit(config, problem.layer, device)
        cubin = None if unit is None else cubins[unit.key]
        if isinstance(cubin, CompileError):
            raise cubin
        return family.plan(config, problem.layer, device, cubin)

    default, *others = candidates
    measured = measure(
        problem, operands, others, default, plan_of, budget_s, mode, before_race=lambda: notice(None)
    )
    tuned = _choose(problem, device, default, measured.trials)
    if not measured.others:
        return tuned
    users = ", ".join(map(str, measured.others))
    busy = f"processes {users} used {device.name} meanwhile, so the times may be off"
    return replace(tuned, note="; ".join(filter(None, (tuned.note, busy))))


def _choose(problem: Problem, device: Device, default_config: Config, trials: tuple[Trial, ...]) -> Tuned:
    from autotune.bench.decide import decide
    from autotune.bench.roofline import measure_peaks

    decision = decide(trials, default_config)
    if decision is None:
        errors = "; ".join(sorted({f"{trial.status}: {trial.error}" for trial in trials})[:2])
        return Tuned(trials, None, f"no config passed: {errors}")
    default = next(trial for trial in trials if trial.config == default_config)
    note = ""
    if default.status != "ok":
        note = f"the default config {default_config} did not pass: {default.error}"
    winner = decision.winner
    gain = decision.gain
    record = Record(
        problem=problem,
        device=device.name,
        arch=device.arch,
        config=winner.config,
        median_us=_known(winner.median_us),
        low_us=_known(winner.low_us),
        high_us=_known(winner.high_us),
        default_config=default_config,
        default_us=_known(winner.median_us) if note else _known(default.median_us),
        source_hash=registry.family_of(winner.config).source_hash(),
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        evidence=Evidence(
            mode=winner.mode,
            rounds=len(winner.samples_us),
            gain=(gain.median, gain.low, gain.high),
            ties=tuple(str(trial.config) for trial in decision.ties),
            runners_up=tuple((str(trial.config), _known(trial.median_us)) for trial in decision.runners_up),
            clock_mhz=winner.clock_mhz,
            deviation=winner.deviation,
            floor_us=measure_peaks(device, problem.layer.dtype).floor_us(problem),
        ),
    )
    return Tuned(trials, record, note)


def _known(value: float | None) -> float:
    assert value is not None  # a trial that passed has every time
    return value
