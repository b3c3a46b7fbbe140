"""Tunes one problem: its candidates compiled, measured, and the winner made a record with its evidence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from autotune.bench.measure import measure
from autotune.bench.operands import Operands
from autotune.config import Config
from autotune.device import Device
from autotune.errors import CompileError
from autotune.kernels import compiler, registry
from autotune.kernels.family import Plan
from autotune.layer import Problem
from autotune.record import Record, Trial

Cubins = dict[str, bytes | CompileError]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Tuned:
    """The trials of one problem and its record; without a record, `note` says why."""

    trials: tuple[Trial, ...]
    record: Record | None
    note: str = ""


def candidates_of(problem: Problem, device: Device) -> list[Config]:
    """The problem's whole space, the default config first."""
    default = registry.default_config(problem, device)
    return [default, *(config for config in registry.space(problem, device) if config != default)]


def compile_candidates(
    chosen: Iterable[tuple[Problem, Config]], device: Device, progress: Progress | None = None
) -> Cubins:
    """The cubin, or the error, of every unit that the configs need, by the unit's key."""
    units = {}
    for problem, config in chosen:
        unit = registry.family_of(config).unit(config, problem.layer, device)
        if unit is not None:
            units[unit.key] = unit
    on_done = None if progress is None else functools.partial(progress, "compile")
    return compiler.build_all(units.values(), on_done=on_done)


def tune(
    problem: Problem,
    operands: Operands,
    candidates: Sequence[Config],
    cubins: Cubins,
    budget_s: float | None = None,
) -> Tuned:
    """Measure the candidates, the first of which is the default config, and choose the winner."""
    device = operands.device

    def plan_of(config: Config) -> Plan:
        family = registry.family_of(config)
        unit = family.unit(config, problem.layer, device)
        cubin = None if unit is None else cubins[unit.key]
        if isinstance(cubin, CompileError):
            raise cubin
        return family.plan(config, problem.layer, device, cubin)

    default, *others = candidates
    trials = measure(problem, operands, others, default, plan_of, budget_s)
    return _choose(problem, device, default, tuple(trials))


def _choose(problem: Problem, device: Device, default_config: Config, trials: tuple[Trial, ...]) -> Tuned:
    """The record: the fastest config whose interval lies below the default's, else the default itself."""
    timed = {trial.config: trial for trial in trials if trial.status == "ok"}
    if not timed:
        errors = "; ".join(sorted({f"{trial.status}: {trial.error}" for trial in trials})[:2])
        return Tuned(trials, None, f"no config passed: {errors}")
    best = min(timed.values(), key=lambda trial: _known(trial.median_us))
    default = timed.get(default_config)
    note = ""
    if default is None:
        reason = next((trial.error for trial in trials if trial.config == default_config), "not timed")
        note = f"the default config {default_config} did not pass: {reason}"
    elif _known(best.high_us) >= _known(default.low_us):
        best = default
    record = Record(
        problem=problem,
        device=device.name,
        arch=device.arch,
        config=best.config,
        median_us=_known(best.median_us),
        low_us=_known(best.low_us),
        high_us=_known(best.high_us),
        default_config=default_config,
        default_us=_known((default or best).median_us),
        source_hash=registry.family_of(best.config).source_hash(),
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return Tuned(trials, record, note)


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("a trial that passed has no time")
    return value
