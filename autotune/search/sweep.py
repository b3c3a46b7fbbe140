"""A sweep: every problem of a model on one device, compiled, measured and stored one by one."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from autotune.bench.measure import measure
from autotune.bench.operands import Operands
from autotune.config import Config
from autotune.device import Device
from autotune.errors import CompileError, DeviceError
from autotune.kernels import compiler, registry
from autotune.kernels.family import Plan
from autotune.layer import Problem
from autotune.record import Binary, Record, Trial
from autotune.search.environment import current_environment
from autotune.store.store import Store

Progress = Callable[[str, int, int], None]
Cubins = dict[str, bytes | CompileError]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one problem; `record` is None when no config passed, and `note` says why."""

    problem: Problem
    record: Record | None
    resumed: bool
    trials: int
    failed: int
    elapsed_s: float
    note: str = ""


def sweep(
    problems: Sequence[Problem],
    device: Device,
    store: Store,
    budget_s: float | None = None,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Measure every problem on the device and store trials, record and binary, each problem at once.

    Yields outcomes as problems finish. A problem whose record was measured with the running kernels is not
    measured again. What was yielded is stored, whatever happens to the iterator. `budget_s` is shared by the
    problems that are still to do.
    """
    environment = current_environment(device)
    finished = store.finished_problems(device, environment.sources)
    known = {(record.problem): record for record in store.records(device)}
    todo = [problem for problem in problems if problem not in finished]
    for problem in problems:
        if problem in finished:
            yield Outcome(problem, known.get(problem), True, 0, 0, 0.0)
    if not todo:
        return
    end = None if budget_s is None else time.monotonic() + budget_s
    cubins = _compile(todo, device, progress)
    sweep_id = store.begin_sweep(device, environment, {"problems": [str(problem) for problem in problems]})
    status = "interrupted"
    try:
        operands: Operands | None = None
        for done, problem in enumerate(sorted(todo, key=lambda each: (each.layer, each.m))):
            begin = time.monotonic()
            share = None if end is None else max(0.0, end - begin) / (len(todo) - done)
            if operands is None or operands.layer != problem.layer:
                operands = None
                operands = Operands.random(problem.layer, device)
            trials = _measure(problem, operands, cubins, share)
            record, note = _choose(problem, device, trials)
            store.add_result(sweep_id, trials, record, _binary(record, device, cubins))
            failed = sum(trial.status in ("failed", "wrong") for trial in trials)
            yield Outcome(problem, record, False, len(trials), failed, time.monotonic() - begin, note)
        status = "finished"
    finally:
        store.finish_sweep(sweep_id, status)


def _candidates(problem: Problem, device: Device) -> list[Config]:
    default = registry.default_config(problem, device)
    return [default, *(config for config in registry.space(problem, device) if config != default)]


def _compile(problems: Sequence[Problem], device: Device, progress: Progress | None) -> Cubins:
    """The cubin, or the error, of every unit that the problems need, by the unit's key."""
    units = {}
    for problem in problems:
        for config in _candidates(problem, device):
            unit = registry.family_of(config).unit(config, problem.layer, device)
            if unit is not None:
                units[unit.key] = unit
    on_done = None if progress is None else functools.partial(progress, "compile")
    return compiler.build_all(units.values(), on_done=on_done)


def _measure(problem: Problem, operands: Operands, cubins: Cubins, budget_s: float | None) -> list[Trial]:
    device = operands.device

    def plan_of(config: Config) -> Plan:
        family = registry.family_of(config)
        unit = family.unit(config, problem.layer, device)
        cubin = None if unit is None else cubins[unit.key]
        if isinstance(cubin, CompileError):
            raise cubin
        return family.plan(config, problem.layer, device, cubin)

    default, *others = _candidates(problem, device)
    return measure(problem, operands, others, default, plan_of, budget_s)


def _choose(problem: Problem, device: Device, trials: Sequence[Trial]) -> tuple[Record | None, str]:
    """The record: the fastest config whose interval lies below the default's, else the default itself."""
    default_config = registry.default_config(problem, device)
    timed = {trial.config: trial for trial in trials if trial.status == "ok"}
    if not timed:
        errors = "; ".join(sorted({f"{trial.status}: {trial.error}" for trial in trials})[:2])
        return None, f"no config passed: {errors}"
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
    return record, note


def _known(value: float | None) -> float:
    if value is None:
        raise DeviceError("a trial that passed has no time")
    return value


def _binary(record: Record | None, device: Device, cubins: Cubins) -> Binary | None:
    if record is None:
        return None
    unit = registry.family_of(record.config).unit(record.config, record.problem.layer, device)
    if unit is None:
        return None
    cubin = cubins[unit.key]
    if isinstance(cubin, CompileError):
        return None
    return Binary(unit.key, unit.arch, compiler.compiler_version(), cubin)
