"""A sweep: every problem of a model on one device, compiled, measured and stored one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autotune.config import Config
from autotune.device import Device
from autotune.layer import Problem
from autotune.record import Mode, Record
from autotune.search.binary import binary_of
from autotune.search.environment import current_environment
from autotune.search.executor import Executor
from autotune.search.incremental import candidates_to_do, current_record, outlasts
from autotune.search.tune import Progress, compile_candidates
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
    mode: Mode = "graph",
) -> Iterator[Outcome]:
    """Measure every problem on the device and store trials, record and binary, each problem at once.

    Yields outcomes as problems finish. What was measured with the running kernels is not measured again: of a
    problem that has a record only what is new is raced, against the incumbent and the default. Timings of
    different modes are never compared; a record of another `mode` gives way. What was yielded is stored,
    whatever happens to the iterator. `budget_s` is shared by the problems that are still to do. `executor`
    tunes on the device; it is started when there is something to do and is left to the caller to close.
    """
    environment = current_environment(device)
    todo: dict[Problem, list[Config]] = {}
    known: dict[Problem, Record | None] = {}
    for problem in problems:
        known[problem] = current_record(problem, device, store, environment, mode)
        candidates = candidates_to_do(problem, device, store, environment, mode)
        if candidates is None:
            yield Outcome(problem, known[problem], True, 0, 0, 0.0)
        else:
            todo[problem] = candidates
    if not todo:
        return
    executor.start()  # it gets ready while the candidates are compiled
    end = None if budget_s is None else time.monotonic() + budget_s
    chosen = ((problem, config) for problem, candidates in todo.items() for config in candidates)
    cubins = compile_candidates(chosen, device, progress)
    arguments = {"mode": mode, "problems": [str(problem) for problem in problems]}
    sweep_id = store.begin_sweep(device, environment, arguments)
    status = "interrupted"
    try:
        for done, problem in enumerate(sorted(todo, key=lambda each: (each.layer, each.m))):
            begin = time.monotonic()
            share = None if end is None else max(0.0, end - begin) / (len(todo) - done)
            tuned = executor.tune(problem, todo[problem], cubins, share, mode)
            stays = outlasts(known[problem], todo[problem], tuned.trials)
            winner = None if stays else tuned.record
            store.add_result(sweep_id, tuned.trials, winner, binary_of(winner, device, cubins))
            record = known[problem] if stays else winner
            took_s = time.monotonic() - begin
            yield Outcome(problem, record, False, len(tuned.trials), tuned.failed, took_s, tuned.note)
        status = "finished"
    finally:
        store.finish_sweep(sweep_id, status)
