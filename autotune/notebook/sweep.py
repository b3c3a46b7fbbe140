"""`autotune.sweep`: tune what a loaded model lacks, or any shapes, from Python."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune.checkpoints.shapes import Shape, parse_shapes
from autotune.console.progress import ProblemProgress, say
from autotune.executors.local import LocalExecutor
from autotune.notebook.report import SweepReport, SweptProblem, swept_problem
from autotune.records.lookup import Answer, Lookup
from autotune.search.executor import Executor, by_model
from autotune.search.sweep import Outcome, default_budget_s
from autotune.search.sweep import sweep as sweep_problems
from autotune.store.store import Store
from autotune.values.counts import counted
from autotune.values.device import Device, find_device
from autotune.values.duration import seconds_of
from autotune.values.errors import BudgetError, DatabaseError, DeviceError, ShapesError
from autotune.values.layer import Layer, Problem, bucket_of, buckets_on
from autotune.values.paths import Location, database_url, shown, sqlite_path

if TYPE_CHECKING:
    import torch

    from autotune.runtime.plans import LayerPlans

    Shapes = str | os.PathLike[str] | Layer

_EVERY_S = 10.0


def sweep(
    model_or_shapes: torch.nn.Module | Shapes | Sequence[Shapes],
    *,
    m: int | Iterable[int] | None = None,
    budget: str | float | None = None,
    db: Location | None = None,
    device: str | None = None,
    progress: bool = True,
) -> SweepReport:
    """Tune what a loaded model lacks; from then on it runs the winners, without being loaded again.

    `model_or_shapes` is a model with `Int4Linear`s, as `autotune.load` and `autotune.apply` make them; or
    what `autotune sweep --shapes` takes: a preset's name, a config.json, a model folder, `n=4096,k=4096`; or
    a `Layer`; or a list of these. Of a model those problems are left out that autotune ships a record of.
    What the database has already is not measured again.

    `m` is the numbers of tokens, each rounded up to its bucket; by default all buckets, on a CPU those up to
    32. `budget` is the time to share among the problems, in seconds or as "60s", "5m"; by default 90 s on a
    CPU and no limit on a GPU. `db` is where records are stored, by default the database that the model was
    planned with, else the one in force. `device` is "cpu" or "cuda:N"; by default each device that the
    model's linears are on, of shapes a GPU if there is one. `progress` shows a bar in a terminal or notebook,
    elsewhere a line now and then.

    Candidates run in a process of their own, so one that crashes takes nothing with it. Nothing else should
    compute on the device meanwhile; the memory that this process holds there stays. Ctrl-C leaves what was
    stored so far, and the model runs that. Compiled, exported and captured graphs stay valid: compiled and
    exported ones run the winners, a captured CUDA graph runs the kernels that it captured. Every other model
    of this process that has the same layers and database runs the winners too.

    Raises:
        FormatError: the model has no `Int4Linear`, or it is no model.
        ShapesError, LayerError: the shapes name no layer, or m is not positive.
        BudgetError: the budget is no duration.
        DeviceError: there is no such device, it cannot be used, or no linear of the model is on it.
        DatabaseError: the database cannot be used, or it is another one than the model reads.
    """
    budget_s = _budget_s(budget)
    target = _target(model_or_shapes, db, device)
    work = _Work(target, None if m is None else _buckets(m))
    begin = time.monotonic()
    try:
        work.run(budget_s, progress)
    finally:
        target.take_over()
    return SweepReport(tuple(work.swept()), shown(target.url), time.monotonic() - begin)


def _budget_s(budget: str | float | None) -> float | None:
    if budget is None or isinstance(budget, str):
        return None if budget is None else seconds_of(budget)
    if isinstance(budget, bool) or not 0 < budget < math.inf:
        raise BudgetError(f"budget={budget!r} is not a time; give seconds > 0, or a text as 60s, 5m or 1h")
    return float(budget)


def _buckets(m: int | Iterable[int]) -> list[int]:
    return [bucket_of(each) for each in ([m] if isinstance(m, int) else m)]


class _ShapesTarget:
    """Layers that somebody named, on one device."""

    def __init__(self, shapes: Sequence[Any], db: Location | None, device: str | None) -> None:
        self.url = database_url(db)
        self._layers = dict.fromkeys(shape.layer for each in shapes for shape in _shapes(each))
        if not self._layers:
            raise ShapesError("an empty list names no layer; give a preset, a model folder, or n=...,k=...")
        self._lookup = Lookup(find_device(device or "auto"), self.url)

    def layers(self) -> dict[Device, list[Layer]]:
        return {self._lookup.device: list(self._layers)}

    def answer(self, device: Device, problem: Problem) -> Answer:  # noqa: ARG002
        return self._lookup.answer(problem)

    def lacks(self, answer: Answer) -> bool:  # noqa: ARG002
        return True

    def take_over(self) -> None:
        self._lookup.forget()


class _ModelTarget:
    """A model's tuned linears, on the devices that they are on."""

    def __init__(self, model: Any, db: Location | None, device: str | None) -> None:
        from autotune.models.tuned import plans_in

        self._model, plans = model, plans_in(model)
        wanted = None if device in (None, "auto") else find_device(str(device))
        self._plans = [each for each in plans if wanted in (None, each.device)]
        if not self._plans:
            places = ", ".join(sorted({each.device.torch_name for each in plans}))
            raise DeviceError(
                f"device {device!r}: the linears of the model are on {places}; leave device out"
            )
        self.url = _database_of(self._plans, db)

    def layers(self) -> dict[Device, list[Layer]]:
        found: dict[Device, list[Layer]] = {}
        for each in self._plans:
            found.setdefault(each.device, []).append(each.layer)
        return found

    def answer(self, device: Device, problem: Problem) -> Answer:
        own = (each for each in self._plans if (each.device, each.layer) == (device, problem.layer))
        return next(own).answer(problem.m)

    def lacks(self, answer: Answer) -> bool:
        return answer.source != "shipped"

    def take_over(self) -> None:
        from autotune.models.tuned import renew

        renew(self._model, self._plans)


_Target = _ShapesTarget | _ModelTarget


def _target(model_or_shapes: Any, db: Location | None, device: str | None) -> _Target:
    if isinstance(model_or_shapes, (list, tuple)):
        return _ShapesTarget(model_or_shapes, db, device)
    if isinstance(model_or_shapes, (str, os.PathLike, Layer)):
        return _ShapesTarget([model_or_shapes], db, device)
    return _ModelTarget(model_or_shapes, db, device)


def _shapes(named: Any) -> list[Shape]:
    if isinstance(named, Layer):
        return [Shape((), named)]
    if isinstance(named, (str, os.PathLike)):
        return parse_shapes(os.fspath(named))
    raise ShapesError(f"{named!r} names no layer; give a Layer, a preset, a model folder, or n=...,k=...")


def _database_of(plans: Sequence[LayerPlans], db: Location | None) -> str:
    """The database that the plans were looked up in, which is also the one to store in."""
    first, *others = dict.fromkeys(each.url for each in plans)
    if others:
        raise DatabaseError(
            f"the model's linears read {shown(first)} and {shown(others[0])}; load it with one"
        )
    if db is not None and database_url(db) != first:
        raise DatabaseError(
            f"the model reads {shown(first)}, not {shown(db)}; leave db out, or load the model with that db"
        )
    if sqlite_path(first) is None:
        raise DatabaseError(f"the model cannot read {shown(first)}; load it with db= and a path")
    return first


@dataclass
class _Part:
    """The problems on devices of one model, with what answered them before, and what became of them."""

    executors: Sequence[Executor]
    before: dict[Problem, Answer]
    to_do: list[Problem]
    outcomes: Mapping[Problem, Outcome]


class _Work:
    """All that a sweep has to do."""

    def __init__(self, target: _Target, buckets: Sequence[int] | None) -> None:
        self._target = target
        layers = target.layers()
        executors = [LocalExecutor(device, database=shown(target.url)) for device in layers]
        self._parts: list[_Part] = []
        for group in by_model(executors):
            before: dict[Problem, Answer] = {}
            for device in (executor.device for executor in group):
                tokens = dict.fromkeys(buckets or buckets_on(device.kind))
                for problem in (Problem(layer, m) for layer in layers[device] for m in tokens):
                    before.setdefault(problem, target.answer(device, problem))
            to_do = [problem for problem, answer in before.items() if self._lacks(problem, answer)]
            self._parts.append(_Part(group, before, to_do, {}))

    def _lacks(self, problem: Problem, answer: Answer) -> bool:
        # A finer bucket without a record is answered by the next one's, which does not settle it.
        own = answer.record is not None and answer.record.problem == problem
        return not own or self._target.lacks(answer)

    def run(self, budget_s: float | None, shows: bool) -> None:
        """Measure and store what is to do."""
        parts = [part for part in self._parts if part.to_do]
        if not parts:
            return
        executors = [executor for part in parts for executor in part.executors]
        total = sum(len(part.to_do) for part in parts)
        with contextlib.ExitStack() as stack:
            for executor in executors:
                stack.enter_context(executor)
            store = stack.enter_context(Store.open(self._target.url))
            if shows:
                say(f"{counted(total, 'problem')} to tune, into {store.name}", err=True)
            progress = stack.enter_context(ProblemProgress(total, executors, (), _EVERY_S, shows))
            for part in parts:
                kind = part.executors[0].device.kind
                limit_s = default_budget_s(kind) if budget_s is None else budget_s
                share_s = None if limit_s is None else limit_s / len(parts)
                running = sweep_problems(part.to_do, store, part.executors, share_s, progress.stage)
                outcomes = progress.follow(running, lambda outcome: outcome.record is not None)
                part.outcomes = {outcome.problem: outcome for outcome in outcomes}

    def swept(self) -> Iterator[SweptProblem]:
        """What became of each problem, once the target has taken it over."""
        for part in self._parts:
            device = part.executors[0].device
            for problem, before in part.before.items():
                after = self._target.answer(device, problem)
                yield swept_problem(problem, before, after, part.outcomes.get(problem))
