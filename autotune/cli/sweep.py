"""`autotune sweep`: tune a model's problems and store the winners."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.options import chosen_shapes, chosen_tokens, model_options, seconds, tuned_problems
from autotune.cli.output import layer_name, microseconds, problem_fields, table
from autotune.cli.progress import ProblemProgress
from autotune.errors import AutotuneError
from autotune.record import MODES, Mode

if TYPE_CHECKING:
    from autotune.device import Device
    from autotune.search.sweep import Outcome
    from autotune.shapes import Shape

# Llama-7B in under two minutes on two cores, with what a start takes around it.
_CPU_BUDGET_S = 90.0

_EXAMPLES = """\b
Examples:
  autotune sweep --shapes llama7b
  autotune sweep --shapes ./my-model --m 1,16 --tp 2 --device cuda:0
  autotune sweep --shapes n=4096,k=4096,group_size=64 --budget 60s --json
  autotune sweep --shapes llama7b --recheck"""


@click.command(epilog=_EXAMPLES)
@model_options
@click.option(
    "--budget",
    callback=seconds,
    metavar="DURATION",
    help="Time to share among the problems, as 60s.  [default: 90s on a CPU, none on a GPU]",
)
@click.option(
    "--recheck", is_flag=True, help="Only measure stored winners, their rivals and the default again."
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    help="How calls are timed: in a graph that rotates over weights, as a decode loop meets them; on hot "
    "weights; or one by one after random idle times, as requests come.  [default: graph]",
)
@click.option("--allow-busy", is_flag=True, help="Measure although others compute on the device.")
@click.option("--json", "as_json", is_flag=True, help="JSON Lines: each problem as it finishes.")
def command(
    m: tuple[int, ...] | None,
    device: str,
    db: str | None,
    budget: float | None,
    recheck: bool,
    mode: Mode | None,
    allow_busy: bool,
    as_json: bool,
    **layers: Any,
) -> None:
    """Tune a model's layers and store the winners.

    Every config is verified before it is timed, and the default config is always among them. Problems that
    the database already has for the running kernels are not measured again, so a sweep that was
    interrupted goes on where it stopped; configs that are new since race against the stored winner.
    Timings of different modes are never compared: a record of another mode is replaced.

    After a driver or compiler change, --recheck confirms stored records in seconds: it keeps, replaces or
    drops each, and says why.
    """
    shapes = chosen_shapes(**layers)
    from autotune.device import find_device

    found = find_device(device)
    problems = tuned_problems(shapes, chosen_tokens(m, found))
    budget_s = _CPU_BUDGET_S if budget is None and found.kind == "cpu" else budget
    if recheck and mode is not None:
        raise click.UsageError("--recheck times each record in its own mode; leave --mode out.")
    if recheck:
        from autotune.cli.recheck import run

        run(problems, shapes, found, db, budget_s, allow_busy, as_json)
        return

    from autotune.executors.local import LocalExecutor
    from autotune.search.sweep import sweep
    from autotune.store.store import Store

    def show(outcome: Outcome) -> None:
        if as_json:
            click.echo(json.dumps(_fields(outcome, found)))

    with (
        Store.open(db) as store,
        LocalExecutor(found, allow_busy=allow_busy) as executor,
        ProblemProgress(len(problems)) as progress,
    ):
        click.echo(f"{len(problems)} problems on {found.name}, into {store.name}", err=True)
        running = sweep(problems, found, store, executor, budget_s, progress.stage, mode or "graph")
        outcomes = progress.follow(running, lambda outcome: outcome.record is not None, show)
    if not as_json:
        click.echo(_winners(outcomes, shapes))
    click.echo(_summary(outcomes), err=True)
    if all(outcome.record is None for outcome in outcomes):
        raise AutotuneError(f"no problem has a config that passed; the first: {outcomes[0].note}")


def _fields(outcome: Outcome, device: Device) -> dict[str, Any]:
    record = outcome.record
    return {
        **problem_fields(outcome.problem),
        "device": device.name,
        "config": None if record is None else str(record.config),
        "median_us": None if record is None else record.median_us,
        "low_us": None if record is None else record.low_us,
        "high_us": None if record is None else record.high_us,
        "default_config": None if record is None else str(record.default_config),
        "default_us": None if record is None else record.default_us,
        "mode": None if record is None else record.mode,
        "resumed": outcome.resumed,
        "trials": outcome.trials,
        "failed": outcome.failed,
        "elapsed_s": round(outcome.elapsed_s, 3),
        "note": outcome.note,
    }


def _winners(outcomes: Sequence[Outcome], shapes: Sequence[Shape]) -> str:
    order = {shape.layer: index for index, shape in enumerate(shapes)}
    rows = []
    for outcome in sorted(outcomes, key=lambda each: (order[each.problem.layer], each.problem.m)):
        name, m, record = layer_name(outcome.problem.layer, shapes), str(outcome.problem.m), outcome.record
        if record is None:
            rows.append((name, m, "-", "-", "-", outcome.note))
            continue
        times = microseconds(record.median_us), microseconds(record.default_us)
        gain = f"{record.default_us / record.median_us:.2f}x"
        rows.append((name, m, *times, gain, f"{record.config}  {outcome.note}".rstrip()))
    return table(("layer", "m", "us", "default us", "gain", "config"), rows)


def _summary(outcomes: Sequence[Outcome]) -> str:
    stored = sum(outcome.record is not None for outcome in outcomes)
    resumed = sum(outcome.resumed for outcome in outcomes)
    trials, failed = sum(each.trials for each in outcomes), sum(each.failed for each in outcomes)
    seconds = sum(outcome.elapsed_s for outcome in outcomes)
    return (
        f"{stored} of {len(outcomes)} problems stored, {resumed} of them from before; "
        f"{trials} configs tried, {failed} failed, {seconds:.0f} s"
    )
