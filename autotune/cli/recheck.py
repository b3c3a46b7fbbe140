"""`autotune sweep --recheck`: which stored records still hold, as a table or JSON Lines."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autotune.checkpoints.shapes import Shape
from autotune.cli.output import Rows, model_name, problem_fields
from autotune.console.progress import ProblemProgress
from autotune.console.text import microseconds
from autotune.values.counts import counted
from autotune.values.errors import AutotuneError
from autotune.values.layer import Problem, bucket_of

if TYPE_CHECKING:
    from autotune.search.executor import Executor
    from autotune.search.recheck import Rechecked
    from autotune.store.store import Store
    from autotune.values.device import Device
    from autotune.values.extra import Extra
    from autotune.values.record import Record

_VERDICTS = ("kept", "replaced", "dropped", "unchecked")


def stored_shapes(
    store: Store, executor: Executor, m: Sequence[int] | None
) -> tuple[list[Problem], list[Shape]]:
    """The problems that have records of the executor's families on its device, of these m or all.

    Raises:
        AutotuneError: there are none.
    """
    device, families = executor.device, executor.environment.sources
    buckets = None if m is None else {bucket_of(each) for each in m}
    records = [
        record
        for record in store.records(device)
        if record.config.family in families and (buckets is None or record.problem.m in buckets)
    ]
    if not records:
        of_m = "" if buckets is None else f" with m={','.join(map(str, sorted(buckets)))}"
        raise AutotuneError(
            f"{store.name} has no record of {device.name}{of_m}; autotune sweep --shapes MODEL makes some"
        )
    problems = list(dict.fromkeys(record.problem for record in records))
    return problems, _shapes_of(problems)


def stale_shapes(
    store: Store, executor: Executor, m: Sequence[int] | None
) -> tuple[list[Problem], list[Shape]]:
    """Those of `stored_shapes` that have no record of the kernels of this autotune; there may be none."""
    from autotune.search.stale import stale_problems

    buckets = None if m is None else {bucket_of(each) for each in m}
    stale = stale_problems(store, executor.device, executor.environment.sources)
    problems = [problem for problem in stale if buckets is None or problem.m in buckets]
    return problems, _shapes_of(problems)


def _shapes_of(problems: Sequence[Problem]) -> list[Shape]:
    return [Shape((), layer) for layer in dict.fromkeys(problem.layer for problem in problems)]


def run_recheck(
    problems: Sequence[Problem],
    shapes: Sequence[Shape],
    executors: Sequence[Executor],
    store: Store,
    progress: ProblemProgress,
    budget_s: float | None,
    as_json: bool,
    extra: Extra,
) -> None:
    """Recheck the problems' records on executors of one device model, and print what became of each."""
    from autotune.search.recheck import recheck

    rows = Rows(shapes, ("verdict", 9), ("us before", 8), ("us now", 8), ("why", 0))

    def text(result: Rechecked) -> str:
        if as_json:
            return json.dumps(_fields(result, executors[0].device))
        return rows.row(result.problem, *_cells(result))

    begin = time.monotonic()
    of = f"{counted(len(problems), 'problem')} on {model_name(executors)}"
    progress.show(f"records of {of}, in {store.name}", err=True)
    running = recheck(problems, store, executors, budget_s, progress.stage, extra)
    if not as_json:
        progress.show(rows.head())
    results = progress.follow(running, lambda result: result.trials > 0, text)
    progress.show(_summary(results, time.monotonic() - begin), err=True)
    if all(result.before is None for result in results):
        raise AutotuneError(f"there is nothing to recheck; the first: {results[0].reason}")


def _fields(result: Rechecked, device: Device) -> dict[str, Any]:
    return {
        **problem_fields(result.problem),
        "device": device.name,
        "verdict": result.verdict,
        "reason": result.reason,
        "before": _record(result.before),
        "after": _record(result.after),
        "trials": result.trials,
        "failed": result.failed,
        "elapsed_s": round(result.elapsed_s, 3),
    }


def _record(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    times = {"median_us": record.median_us, "low_us": record.low_us, "high_us": record.high_us}
    return {"config": str(record.config), **times, "default_us": record.default_us}


def _cells(result: Rechecked) -> Sequence[str]:
    before, after = result.before, None if result.verdict == "unchecked" else result.after
    times = (microseconds(record.median_us if record else None) for record in (before, after))
    return (result.verdict, *times, result.reason)


def _summary(results: Sequence[Rechecked], seconds: float) -> str:
    counts = (f"{sum(each.verdict == verdict for each in results)} {verdict}" for verdict in _VERDICTS)
    trials = sum(each.trials for each in results)
    return f"{', '.join(counts)}; {counted(trials, 'config')} tried, {seconds:.0f} s"
