"""A sweep: every problem of a model on one device, compiled, measured and stored one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autotune.device import Device
from autotune.errors import CompileError
from autotune.kernels import compiler, registry
from autotune.layer import Problem
from autotune.record import Binary, Record
from autotune.search.environment import current_environment
from autotune.search.executor import Executor
from autotune.search.tune import Cubins, Progress, candidates_of, compile_candidates
from autotune.store.store import Store


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
    executor: Executor,
    budget_s: float | None = None,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Measure every problem on the device and store trials, record and binary, each problem at once.

    Yields outcomes as problems finish. A problem whose record was measured with the running kernels is not
    measured again. What was yielded is stored, whatever happens to the iterator. `budget_s` is shared by the
    problems that are still to do. `executor` tunes on the device; it is started when there is something to do
    and is left to the caller to close.
    """
    environment = current_environment(device)
    finished = store.finished_problems(device, environment.sources)
    known = {record.problem: record for record in store.records(device)}
    todo = [problem for problem in problems if problem not in finished]
    for problem in problems:
        if problem in finished:
            yield Outcome(problem, known.get(problem), True, 0, 0, 0.0)
    if not todo:
        return
    executor.start()  # it gets ready while the candidates are compiled
    end = None if budget_s is None else time.monotonic() + budget_s
    chosen = ((problem, config) for problem in todo for config in candidates_of(problem, device))
    cubins = compile_candidates(chosen, device, progress)
    sweep_id = store.begin_sweep(device, environment, {"problems": [str(problem) for problem in problems]})
    status = "interrupted"
    try:
        for done, problem in enumerate(sorted(todo, key=lambda each: (each.layer, each.m))):
            begin = time.monotonic()
            share = None if end is None else max(0.0, end - begin) / (len(todo) - done)
            tuned = executor.tune(problem, candidates_of(problem, device), cubins, share)
            store.add_result(sweep_id, tuned.trials, tuned.record, _binary(tuned.record, device, cubins))
            failed = sum(trial.status in ("failed", "wrong") for trial in tuned.trials)
            took_s = time.monotonic() - begin
            yield Outcome(problem, tuned.record, False, len(tuned.trials), failed, took_s, tuned.note)
        status = "finished"
    finally:
        store.finish_sweep(sweep_id, status)


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
