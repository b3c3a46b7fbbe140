"""A sweep: every problem of a model on devices of one model, compiled, measured and stored one by one."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from autotune.bench.budget import Budget
from autotune.prediction.finding import predictor_for
from autotune.search.binary import binary_of
from autotune.search.executor import Executor
from autotune.search.fleet import Task, sweeps_of, tune_all
from autotune.search.incremental import (
    current_record,
    current_records,
    outlasts,
    superseded,
    was_for_nothing,
)
from autotune.search.todo import task_to_do
from autotune.search.tune import Progress
from autotune.store.store import Store
from autotune.values.extra import TIMES_ONLY, Extra
from autotune.values.layer import COARSE, Problem
from autotune.values.record import DEFAULT_MODE, Mode, Record

# Llama-7B in under two minutes on two cores, with what a start takes around it.
_CPU_BUDGET_S = 90.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one problem; `record` is None when there is none, and `note` says why.

    `trials` counts the configs that were tried, `pruned` those that are predicted to be slow and were not. Of
    a `noisy` one nothing could be believed: a record from before stays, and the next sweep measures again.
    """

    problem: Problem
    record: Record | None
    resumed: bool
    trials: int
    failed: int
    elapsed_s: float
    note: str = ""
    noisy: bool = False
    pruned: int = 0


def default_budget_s(kind: str) -> float | None:
    """The seconds of a sweep on a kind of device, "cuda" or "cpu", where nobody says; None for no limit."""
    return _CPU_BUDGET_S if kind == "cpu" else None


def sweep(
    problems: Sequence[Problem],
    store: Store,
    executors: Sequence[Executor],
    budget_s: float | None = None,
    progress: Progress | None = None,
    mode: Mode = DEFAULT_MODE,
    extra: Extra = TIMES_ONLY,
) -> Iterator[Outcome]:
    """Measure every problem on one of the executors; store trials, record and binary, each problem at once.

    Yields outcomes as problems finish. What was measured with the running kernels is not measured again: of a
    problem that has a record only what is new is raced, against the incumbent and the default. What a fit of
    the device, the user's own or a shipped one, predicts to be far from the fastest is left out. Timings of
    different modes are never compared, and a record of another `mode` stays. Finer buckets come last and race
    what did best at the powers of two around them, where these have records. What was yielded is stored,
    whatever happens to the iterator. `budget_s` is shared by the problems that are still to do; those that do
    not begin in it are left to the next sweep. What an executor waits for is not counted. The executors
    tune on devices of one model; they are started when there is something to do and left to the caller to
    close. All candidates of a problem run on one of them, so that a slow device chooses no other winner. What
    is `extra` is measured where it can be had, also for problems whose record lacks it.

    Raises:
        DeviceError: no executor is left that can use its device.
    """
    budget = Budget(budget_s)
    coarse = [problem for problem in problems if problem.m in COARSE]
    finer = [problem for problem in problems if problem.m not in COARSE]
    look_up = _look_up(store, executors[0], mode, extra)
    left = Counter(problem.layer for problem in coarse)
    first = budget.part(len(coarse) / max(1, len(problems)))
    for outcome in _sweep(coarse, look_up, store, executors, first, progress, mode):
        yield outcome
        layer = outcome.problem.layer
        left[layer] -= 1
        if not left[layer] and not outcome.resumed:  # the devices are at other layers meanwhile
            for problem in finer:
                if problem.layer == layer:
                    look_up(problem)
    yield from _sweep(finer, look_up, store, executors, budget, progress, mode)


_LookUp = Callable[[Problem], tuple[Record | None, Task | None]]
"""Gives the record of a problem, and what of it is to be measured."""


def _look_up(store: Store, executor: Executor, mode: Mode, extra: Extra) -> _LookUp:
    """Looks each problem up once, when it is first asked for: it takes milliseconds, and devices may wait."""
    device, environment = executor.device, executor.environment
    predictor = predictor_for(device, store.database.path)

    @functools.cache
    def look_up(problem: Problem) -> tuple[Record | None, Task | None]:
        record = current_record(problem, device, store, environment, mode)
        return record, task_to_do(problem, device, store, environment, mode, predictor, extra)

    return look_up


def _sweep(
    problems: Sequence[Problem],
    look_up: _LookUp,
    store: Store,
    executors: Sequence[Executor],
    budget: Budget,
    progress: Progress | None,
    mode: Mode,
) -> Iterator[Outcome]:
    """`sweep`, without what the problems may learn from each other."""
    device, environment = executors[0].device, executors[0].environment
    tasks: list[Task] = []
    known: dict[Problem, Record | None] = {}
    for problem in problems:
        known[problem], task = look_up(problem)
        if task is None:
            yield Outcome(problem, known[problem], True, 0, 0, 0.0)
            continue
        if not tasks:
            for executor in executors:
                executor.start()  # they get ready while the other problems are looked up
        tasks.append(task)
    if not tasks:
        return
    arguments = {"mode": mode, "problems": [str(problem) for problem in problems]}
    running = tune_all(tasks, executors, budget, progress)
    with sweeps_of(executors, store, arguments) as sweep_of, contextlib.closing(running):
        for task, done in running:
            tuned, record = done.tuned, known[task.problem]
            stays = outlasts(record, task.candidates, tuned.trials)
            stays |= was_for_nothing(record, task.candidates, tuned.record, task.extra)
            winner = None if stays else tuned.record
            binary = binary_of(winner, device, done.cubins)
            stored = (
                current_records(task.problem, device, store, environment, mode)
                if tuned.noisy or winner
                else ()
            )
            dropped = superseded(winner, stored)
            store.add_result(sweep_of(done.executor), task.trials(tuned), winner, binary, dropped)
            yield Outcome(
                task.problem,
                record if stays else winner,
                False,
                len(tuned.trials),
                tuned.failed,
                done.elapsed_s,
                tuned.note,
                tuned.noisy,
                len(task.pruned),
            )
