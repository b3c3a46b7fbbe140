"""Has one or more executors tune problems, and gives what came of each as they finish."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from autotune.bench.budget import Budget
from autotune.search.assignment import Assignment
from autotune.search.executor import Executor
from autotune.search.tune import Cubins, Progress, Tuned, compile_candidates
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.errors import DeviceError
from autotune.values.extra import TIMES_ONLY, Extra
from autotune.values.layer import Problem
from autotune.values.record import DEFAULT_MODE, Mode, Trial

_LOG = logging.getLogger(__name__)

OUT_OF_TIME = "the time budget ended before its turn"


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be measured of a problem: the candidates, the first of which is the default config.

    `learned_from` is as of the record's evidence. `pruned` are trials of configs that are left out.
    """

    problem: Problem
    candidates: Sequence[Config]
    mode: Mode = DEFAULT_MODE
    extra: Extra = TIMES_ONLY
    learned_from: Sequence[int] = ()
    pruned: Sequence[Trial] = ()

    def trials(self, tuned: Tuned) -> Sequence[Trial]:
        """Those to store of what came of it: what was left out is not missing once there is a winner."""
        return tuned.trials if tuned.record is None else (*tuned.trials, *self.pruned)


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a task, and which executor did it with which kernels."""

    tuned: Tuned
    executor: Executor
    cubins: Cubins
    elapsed_s: float


@contextlib.contextmanager
def sweeps_of(
    executors: Sequence[Executor], store: Store, arguments: Mapping[str, Any]
) -> Iterator[Callable[[Executor], int]]:
    """The ids of the store's sweeps: one for all executors of the same environment."""
    device, status = executors[0].device, "interrupted"
    environments = [executor.environment for executor in executors]
    distinct = [each for index, each in enumerate(environments) if each not in environments[:index]]
    ids = [store.begin_sweep(device, environment, arguments) for environment in distinct]
    try:
        yield lambda executor: ids[distinct.index(environments[executors.index(executor)])]
        status = "finished"
    finally:
        for sweep_id in ids:
            store.finish_sweep(sweep_id, status)


def tune_all(
    tasks: Sequence[Task],
    executors: Sequence[Executor],
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> Generator[tuple[Task, Done], None, None]:
    """Tune every task on one of the executors, which are of one device model; in the order they end in.

    Candidates are compiled meanwhile. `budget` is the time for all, shared by what is still to do. A task
    that did not begin in it has no trials. What executors waited for extends it. What a lost executor was at
    goes to the others. When the iterator is closed, all that runs ends at once. The executors are left to the
    caller to close.

    Raises:
        DeviceError: no executor is left.
        CompileError: there is no compiler at all.
    """
    run = _Run(tasks, executors, budget or Budget(None))
    threads = [
        threading.Thread(target=run.tune, args=(who,), name=f"tune {who}", daemon=True)
        for who in range(len(executors))
    ]
    threads.append(threading.Thread(target=run.compile, args=(progress,), name="compile", daemon=True))
    try:
        for thread in threads:
            thread.start()
        yield from run.results()
    finally:
        run.stop()
        for thread in threads:
            thread.join()
        run.clear()


class _Stopped(Exception):  # noqa: N818, it reads as what happened
    """Nobody waits for these kernels any more."""


class _Run:
    """What the threads of the executors, the compiler's and the caller's share."""

    def __init__(self, tasks: Sequence[Task], executors: Sequence[Executor], budget: Budget) -> None:
        self._tasks = {task.problem: task for task in tasks}
        self._executors = executors
        self._budget = budget
        self._assignment = Assignment(self._tasks, len(executors))
        self._cubins: dict[Problem, Cubins] = {}
        self._messages: SimpleQueue[tuple[Task, Done] | Exception] = SimpleQueue()
        self._cancelled = False

    def results(self) -> Iterator[tuple[Task, Done]]:
        """What comes of the tasks, until all are finished."""
        left = len(self._executors)
        for _ in self._tasks:
            while isinstance(message := self._messages.get(), DeviceError):
                left -= 1
                if not left:
                    raise message
                _LOG.warning("%s; the others go on without it", message)
            if isinstance(message, Exception):
                raise message
            yield message

    def stop(self) -> None:
        """Have the threads end; what is not finished by now is cancelled."""
        self._cancelled = self._assignment.unfinished > 0
        self._assignment.stop()
        if self._cancelled:
            for executor in self._executors:
                executor.cancel()

    def clear(self) -> None:
        """Leave executors that can be used again."""
        if self._cancelled:
            for executor in self._executors:
                executor.close()

    def tune(self, who: int) -> None:
        """Tune on one executor whatever it is given."""
        executor, problem = self._executors[who], None
        try:
            executor.start()
            while (problem := self._assignment.take(who)) is not None:
                done = self._tune(problem, executor)
                self._assignment.finish()
                self._messages.put((self._tasks[problem], done))
        except DeviceError as error:
            self._assignment.leave(who, problem)
            self._messages.put(error)
        except Exception as error:
            self._messages.put(error)

    def _tune(self, problem: Problem, executor: Executor) -> Done:
        begin = time.monotonic()
        task, cubins = self._tasks[problem], self._cubins[problem]
        share_s = self._share()
        if share_s == 0.0:
            return Done(Tuned((), None, OUT_OF_TIME), executor, cubins, 0.0)
        tuned = executor.tune(problem, task.candidates, cubins, share_s, task.mode, task.extra)
        # Those of several executors that do not wait go on meanwhile.
        self._budget.extend(tuned.waited_s / len(self._executors))
        elapsed_s = time.monotonic() - begin - tuned.waited_s
        return Done(tuned.learned(task.learned_from), executor, cubins, elapsed_s)

    def _share(self) -> float | None:
        left_s, problems = self._budget.left_s, self._assignment.unfinished
        return None if left_s is None else left_s * min(self._assignment.threads, problems) / problems

    def compile(self, progress: Progress | None) -> None:
        """Compile what the tasks need, and give out each problem when its kernels are there."""

        def check(stage: str, done: int, total: int) -> None:
            if self._cancelled:
                raise _Stopped
            if progress is not None:
                progress(stage, done, total)

        def give_out(problem: Problem, cubins: Cubins) -> None:
            self._cubins[problem] = cubins
            self._assignment.add(problem)

        chosen = {problem: task.candidates for problem, task in self._tasks.items()}
        try:
            compile_candidates(chosen, self._executors[0].device, check, give_out)
        except _Stopped:
            pass
        except Exception as error:
            self._messages.put(error)
