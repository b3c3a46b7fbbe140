"""`autotune sweep --recheck`: which stored records still hold, as a table or JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.output import layer_name, microseconds, problem_fields, table
from autotune.cli.progress import ProblemProgress
from autotune.errors import AutotuneError

if TYPE_CHECKING:
    from autotune.device import Device
    from autotune.layer import Problem
    from autotune.record import Record
    from autotune.search.recheck import Rechecked
    from autotune.shapes import Shape

_VERDICTS = ("kept", "replaced", "dropped", "unchecked")


def run(
    problems: Sequence[Problem],
    shapes: Sequence[Shape],
    device: Device,
    db: str | None,
    budget_s: float | None,
    allow_busy: bool,
    as_json: bool,
) -> None:
    """Recheck the problems' records and print what became of each."""
    from autotune.executors.local import LocalExecutor
    from autotune.search.recheck import recheck
    from autotune.store.store import Store

    def show(result: Rechecked) -> None:
        if as_json:
            click.echo(json.dumps(_fields(result, device)))

    with (
        Store.open(db) as store,
        LocalExecutor(device, allow_busy=allow_busy) as executor,
        ProblemProgress(len(problems)) as progress,
    ):
        click.echo(f"records of {len(problems)} problems on {device.name}, in {store.name}", err=True)
        running = recheck(problems, device, store, executor, budget_s, progress.stage)
        results = progress.follow(running, lambda result: result.trials > 0, show)
    if not as_json:
        click.echo(_table(results, shapes))
    click.echo(_summary(results), err=True)
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


def _table(results: Sequence[Rechecked], shapes: Sequence[Shape]) -> str:
    order = {shape.layer: index for index, shape in enumerate(shapes)}
    rows = []
    for result in sorted(results, key=lambda each: (order[each.problem.layer], each.problem.m)):
        before, after = result.before, result.after
        rows.append(
            (
                layer_name(result.problem.layer, shapes),
                str(result.problem.m),
                result.verdict,
                microseconds(before.median_us if before else None),
                microseconds(after.median_us if after else None),
                result.reason,
            )
        )
    return table(("layer", "m", "verdict", "us before", "us now", "why"), rows)


def _summary(results: Sequence[Rechecked]) -> str:
    counts = (f"{sum(each.verdict == verdict for each in results)} {verdict}" for verdict in _VERDICTS)
    trials, seconds = sum(each.trials for each in results), sum(each.elapsed_s for each in results)
    return f"{', '.join(counts)}; {trials} configs tried, {seconds:.0f} s"
