"""Confirms stored records in seconds: the winner, those that came near and the default, measured again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from autotune.bench.budget import Budget
from autotune.families import registry
from autotune.search.binary import binary_of
from autotune.search.executor import Executor
from autotune.search.fleet import OUT_OF_TIME, Task, sweeps_of, tune_all
from autotune.search.incremental import (
    by_time,
    current_records,
    current_trials,
    is_valid,
    outlasts,
    superseded,
    wanted,
)
from autotune.search.tune import Progress, Tuned
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.extra import TIMES_ONLY, Extra
from autotune.values.layer import Problem
from autotune.values.record import Checked, Environment, Record

_NEAR = 6
"""How many configs besides the winner and the default are measured again."""


@dataclass(frozen=True, slots=True)
class Rechecked:
    """What became of a stored record.

    `verdict` is `kept`, `replaced` or `dropped`; or `unchecked`, when there is no record of the present
    kernels, or its turn never came. `before` and `after` are the records, `reason` says in one line why.
    """

    problem: Problem
    verdict: str
    before: Record | None
    after: Record | None
    reason: str
    trials: int = 0
    failed: int = 0
    elapsed_s: float = 0.0


def recheck(
    problems: Sequence[Problem],
    store: Store,
    executors: Sequence[Executor],
    budget_s: float | None = None,
    progress: Progress | None = None,
    extra: Extra = TIMES_ONLY,
) -> Iterator[Rechecked]:
    """Measure each stored winner, its runners-up and the default again; keep, replace or drop the record.

    Each is timed in its record's own mode. The outcome is stored with its trials as a new sweep of the
    present environment, problem by problem. A record is dropped when nothing that was measured passes.
    `budget_s` is shared by the problems. The executors are those of a sweep, and so is `extra`.
    """
    device, environment = executors[0].device, executors[0].environment
    tasks: list[Task] = []
    known: dict[Problem, list[Record]] = {}
    for problem in problems:
        known[problem] = records = current_records(problem, device, store, environment)
        if records:
            tasks.append(task_of(records, device, store, environment, extra))
        else:
            yield Rechecked(problem, "unchecked", None, None, _why_unchecked(problem, device, store))
    if not tasks:
        return
    arguments = {"recheck": True, "problems": [str(problem) for problem in problems]}
    running = tune_all(tasks, executors, Budget(budget_s), progress)
    with sweeps_of(executors, store, arguments) as sweep_of, contextlib.closing(running):
        for task, done in running:
            records, sweep_id = known[task.problem], sweep_of(done.executor)
            result = judge(records[-1], task.candidates, done.tuned)
            if result.verdict == "unchecked":
                store.add_result(sweep_id, done.tuned.trials, None, None)
            else:
                binary = binary_of(result.after, device, done.cubins)
                told = (superseded_by(result, records), Checked(records[-1], result.verdict))
                store.add_result(sweep_id, done.tuned.trials, result.after, binary, *told)
            yield replace(result, elapsed_s=done.elapsed_s)


def task_of(
    records: Sequence[Record],
    device: Device,
    store: Store,
    environment: Environment,
    extra: Extra = TIMES_ONLY,
) -> Task:
    """What is to be measured to recheck a problem's current records, of which a model gets the last one."""
    last = records[-1]
    learned_from = () if last.evidence is None else last.evidence.learned_from
    candidates = _candidates(records, device, store, environment)
    return Task(last.problem, candidates, last.mode, wanted(last, device, extra), learned_from)


def superseded_by(result: Rechecked, records: Sequence[Record]) -> Sequence[Record]:
    """Those of the problem's records that go, by the result of their recheck."""
    return records if result.after is None else superseded(result.after, records)


def _candidates(
    records: Sequence[Record], device: Device, store: Store, environment: Environment
) -> list[Config]:
    """The default, the winner, and those that came near it, the winners of other sources among them.

    The winner stands before the others, so that it stays when the race cannot tell them apart.
    """
    record = records[-1]
    problem, evidence = record.problem, record.evidence
    if evidence is not None and (evidence.ties or evidence.runners_up):
        names = (*evidence.ties, *(name for name, _ in evidence.runners_up))
        near = [Config.parse(name) for name in names]
    else:
        near = by_time(current_trials(problem, device, store, environment, record.mode))
    near = [config for config in near if config != record.config and is_valid(config, problem, device)]
    default = registry.default_config(problem, device, environment.sources)
    wanted = (record.config, *(other.config for other in records), *near[:_NEAR])
    valid = (config for config in wanted if is_valid(config, problem, device))
    return list(dict.fromkeys((default, *valid)))


def judge(before: Record, candidates: Sequence[Config], tuned: Tuned) -> Rechecked:
    """What became of the record, given what was measured of its candidates."""
    after = tuned.record
    if outlasts(before, candidates, tuned.trials):
        after, verdict = before, "unchecked"
        reason = tuned.note or OUT_OF_TIME
    elif after is None:
        verdict, reason = "dropped", tuned.note
    elif after.config == before.config:
        verdict = "kept"
        reason = f"{after.median_us:.2f} us, {before.median_us:.2f} us before"
    else:
        verdict, reason = "replaced", _why_replaced(before, after, tuned)
    return Rechecked(before.problem, verdict, before, after, reason, len(tuned.trials), tuned.failed)


def _why_replaced(before: Record, after: Record, tuned: Tuned) -> str:
    trial = next(trial for trial in tuned.trials if trial.config == before.config)
    if trial.status in ("failed", "wrong") or trial.median_us is None:
        return f"{before.config} is {trial.status}: {trial.error}"
    times = f"{after.median_us:.2f} us against {trial.median_us:.2f} us"
    if after.config == after.default_config:
        return f"{before.config} does not beat the default config: {times}"
    return f"{after.config} is faster than {before.config}: {times}"


def _why_unchecked(problem: Problem, device: Device, store: Store) -> str:
    stored = [why for record in store.records(device, problem) if (why := registry.why_stale(record, device))]
    return f"{stored[-1] if stored else 'no record'}; sweep the problem"
