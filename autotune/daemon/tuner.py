"""Works a job out: what is to be measured, measured by an executor, until another thread says to drop it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autotune.prediction.finding import predictor_for
from autotune.search.binary import binary_of
from autotune.search.executor import Executor
from autotune.search.fleet import Task
from autotune.search.incremental import current_record, current_records, outlasts
from autotune.search.recheck import judge, superseded_by, task_of
from autotune.search.todo import task_to_do
from autotune.search.tune import compile_candidates
from autotune.store.store import Store
from autotune.values.job import Job
from autotune.values.record import DEFAULT_MODE, Binary, Checked, Record, Trial


class Dropped(Exception):  # noqa: N818, it reads as what happened
    """A job that is not to be finished now; the argument says why."""


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What is to be measured of a job's problem, and the record that it has; no candidates: nothing.

    A recheck has all of the problem's current records as `rechecked`, and `known` is the last of them.
    """

    task: Task
    known: Record | None
    rechecked: Sequence[Record] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job: `record` is in force from now on, `winner` is it when it is new.

    Without a record, `note` says why. Of a recheck, `checked` is what became of `before`, and `dropped` goes.
    """

    trials: Sequence[Trial]
    record: Record | None
    winner: Record | None = None
    binary: Binary | None = None
    note: str = ""
    dropped: Sequence[Record] = ()
    checked: Checked | None = None


class Tuner:
    """Tunes one job after the other with an executor; `drop` comes from other threads."""

    def __init__(self, executor: Executor) -> None:
        self._executor, self.environment = executor, executor.environment
        self._device = executor.device
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._reason: Exception | None = None
        self.warm = False

    def plan(self, job: Job, store: Store) -> JobPlan:
        """What is to be done.

        Raises:
            DeviceError: no family can do the problem.
            DatabaseError: the store cannot be read.
        """
        problem, device, environment = job.problem, self._device, self.environment
        records = current_records(problem, device, store, environment) if job.is_recheck else []
        if records:
            return JobPlan(task_of(records, device, store, environment), records[-1], records)
        known = current_record(problem, device, store, environment, DEFAULT_MODE)
        predictor = predictor_for(device, store.database.path)
        task = task_to_do(problem, device, store, environment, DEFAULT_MODE, predictor)
        return JobPlan(task or Task(problem, ()), known)

    def tune(self, job: Job, plan: JobPlan) -> Result:
        """Measure the candidates.

        Raises:
            Exception: the reason with which another thread had the job dropped.
            DeviceError, CompileError: the device or the compiler cannot be used at all.
        """
        if not plan.task.candidates:
            return Result((), plan.known, note="it had one")
        with self._lock:
            self._job, self._reason = job, None
        try:
            return self._measure(plan)
        except Exception:
            self._check()  # an executor that is cancelled raises what it likes
            raise
        finally:
            with self._lock:
                self._job = None
            if self._reason is not None:
                self.rest()  # a closed executor can be used again

    def drop(self, job: Job, reason: Exception) -> None:
        """Have `tune` raise the reason soon, if it is at this job; harmless when it is said again."""
        with self._lock:
            if self._job is job:
                self._reason = self._reason or reason
                self._executor.cancel()

    def rest(self) -> None:
        """End the worker: the device's memory is free again, and whoever waits for the device has it."""
        self._executor.close()
        self.warm = False

    def _measure(self, plan: JobPlan) -> Result:
        task, device = plan.task, self._device
        self._executor.start()  # it gets ready while the candidates are compiled
        self.warm = True
        wanted = {task.problem: task.candidates}
        cubins = compile_candidates(wanted, device, lambda *_: self._check())[task.problem]
        self._check()
        tuned = self._executor.tune(task.problem, task.candidates, cubins, mode=task.mode, extra=task.extra)
        tuned = tuned.learned(task.learned_from)
        self._check()
        if outlasts(plan.known, task.candidates, tuned.trials):
            return Result(tuned.trials, plan.known, note=tuned.note)
        binary = binary_of(tuned.record, device, cubins)
        result = Result(task.trials(tuned), tuned.record, tuned.record, binary, tuned.note)
        if plan.known is None or not plan.rechecked:
            return result
        judged = judge(plan.known, task.candidates, tuned)
        checked = Checked(plan.known, judged.verdict)
        dropped = superseded_by(judged, plan.rechecked)
        return replace(result, dropped=dropped, checked=checked, note=judged.reason)

    def _check(self) -> None:
        with self._lock:
            if self._reason is not None:
                raise self._reason
