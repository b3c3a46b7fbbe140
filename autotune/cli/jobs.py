"""`autotune jobs`: the queue of problems that daemons tune."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.options import chosen_shapes, chosen_tokens, database_option, model_options, tuned_problems
from autotune.cli.output import problem_fields
from autotune.console.text import layer_name, table
from autotune.values.counts import counted
from autotune.values.errors import AutotuneError
from autotune.values.job import STATES, Job

if TYPE_CHECKING:
    from autotune.store.queue import Queue
    from autotune.store.store import Store

_REFRESH_S = 1.0
_NUMBER = click.IntRange(1, 2**63 - 1)
_ON_SCREEN = ("running", "queued", "parked")

_EXAMPLES = """\b
Examples:
  autotune jobs
  autotune jobs add --shapes llama7b --m 1,16
  autotune jobs list --state parked --json
  autotune jobs watch"""


class _ListFirst(click.Group):
    """Without a command, and with nothing but options, it lists."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def _finite(_: click.Context, __: click.Parameter, number: float | None) -> float | None:
    if number is not None and not math.isfinite(number):
        raise click.BadParameter(f"{number} is not a finite number")
    return number


@click.group(cls=_ListFirst, epilog=_EXAMPLES)
def command() -> None:
    """Show and change the queue of problems to tune.

    A job is one problem for one device model. Daemons queue what models ran without a record of its own;
    `add` queues what you name. Without a command: list.
    """


@command.command("list", epilog="\b\nExample:\n  autotune jobs list --state queued --device 'NVIDIA H200'")
@click.option("--state", type=click.Choice(STATES), help="Only jobs in this state.")
@click.option("--device", metavar="NAME", help="Only of this device: auto, cpu, cuda:N, or a model's name.")
@click.option("--json", "as_json", is_flag=True, help="One list of objects.")
@database_option
def list_jobs(state: str | None, device: str | None, as_json: bool, db: str | None) -> None:
    """Show jobs in the order in which they are claimed.

    The priority is how many microseconds a record is expected to save over all calls that models made; what a
    user added comes first, and has `user` there. A job that failed three times is parked, with its last
    reason.
    """
    with _opened(db) as (_, queue):
        jobs = queue.jobs(state, None if device is None else _model_name(device))
    if as_json:
        click.echo(json.dumps([_fields(job) for job in jobs], indent=2))
    elif jobs:
        click.echo(_table(jobs))
    elif state or device:
        click.echo("no such job; autotune jobs shows all", err=True)
    else:
        click.echo("the queue is empty; autotune jobs add --shapes MODEL fills it", err=True)


@command.command(epilog="\b\nExample:\n  autotune jobs add --shapes llama3-8b --device 'NVIDIA H100'")
@model_options
@click.option(
    "--priority",
    type=float,
    callback=_finite,
    help="The highest is tuned first.  [default: before all that models ran]",
)
def add(
    shapes: tuple[str, ...],
    m: tuple[int, ...] | None,
    device: str,
    db: str | None,
    priority: float | None,
    **layers: Any,
) -> None:
    """Queue the problems of a model.

    They are for the device model of --device, which may also be the name of one in the database that is not
    here, as a fleet's. A problem that is queued already keeps the higher of both priorities.
    """
    chosen = chosen_shapes(shapes, **layers)
    from autotune.search.demand import ASKED, ask, models_named

    with _opened(db) as (store, _):
        for model in models_named(store, device):
            problems = tuned_problems(chosen, chosen_tokens(m, model))
            new = ask(store, problems, model, ASKED if priority is None else priority)
            there = f"{len(problems) - new} there already"
            click.echo(f"{counted(new, 'job')} queued for {model.name}, {there}")


@command.command(epilog="\b\nExamples:\n  autotune jobs retry 12 13\n  autotune jobs retry --parked")
@click.argument("ids", metavar="[ID]...", nargs=-1, type=_NUMBER)
@click.option("--parked", is_flag=True, help="Every parked job.")
@database_option
def retry(ids: tuple[int, ...], parked: bool, db: str | None) -> None:
    """Queue jobs again that are parked, cancelled or done."""
    if bool(ids) == parked:
        raise click.UsageError("Give the numbers of jobs, or --parked.")
    with _opened(db) as (_, queue):
        before = _states(queue, ids)
        changed = queue.retry(None if parked else ids)
    _tell(changed, "queued again", ids, [each for each in before if each[1] in ("running", None)])


@command.command(epilog="\b\nExample:\n  autotune jobs cancel 12 13")
@click.argument("ids", metavar="ID...", nargs=-1, type=_NUMBER, required=True)
@database_option
def cancel(ids: tuple[int, ...], db: str | None) -> None:
    """Call off jobs that are not done.

    A worker that has one discards what it measured.
    """
    with _opened(db) as (_, queue):
        before = _states(queue, ids)
        changed = queue.cancel(ids)
    _tell(changed, "cancelled", ids, [each for each in before if each[1] in ("done", "cancelled", None)])


@command.command(epilog="\b\nExample:\n  autotune jobs watch | jq 'select(.state == \"parked\")'")
@database_option
def watch(db: str | None) -> None:
    """Follow the queue until Ctrl-C.

    On a terminal: what runs, what comes next and what is parked. Elsewhere JSON Lines: every job once, and
    again when it changes.
    """
    with _opened(db) as (_, queue):
        if sys.stdout.isatty():
            _show(queue)
        for job in _changes(queue):
            click.echo(json.dumps(_fields(job)))


@contextmanager
def _opened(db: str | None) -> Iterator[tuple[Store, Queue]]:
    from autotune.store.queue import Queue
    from autotune.store.store import Store

    with Store.open(db) as store:
        yield store, Queue(store)


def _model_name(device: str) -> str:
    from autotune.search.demand import device_here

    here = device_here(device)
    return device if here is None else here.name


def _states(queue: Queue, ids: Sequence[int]) -> list[tuple[int, str | None]]:
    """The state of each of these jobs, None of one that is not in the queue."""
    states: dict[int, str] = {job.id: job.state for job in queue.jobs()} if ids else {}
    return [(each, states.get(each)) for each in dict.fromkeys(ids)]


def _tell(changed: int, how: str, ids: Sequence[int], left: Sequence[tuple[int, str | None]]) -> None:
    """Say how many jobs were changed, and of those that were named which were not, and why."""
    if changed or not ids:
        click.echo(f"{counted(changed, 'job')} {how}")
    if left:
        states = ((each, f"{state} already" if state else "not in the queue") for each, state in left)
        reasons = "; ".join(f"job {each} is {state}" for each, state in states)
        raise AutotuneError(f"not {how}: {reasons}")


def _fields(job: Job) -> dict[str, Any]:
    fields = asdict(job)
    del fields["problem"]
    return {"id": fields.pop("id"), **problem_fields(job.problem), **fields}


def _table(jobs: Sequence[Job]) -> str:
    header = ("job", "state", "layer", "m", "device", "priority", "attempts", "worker", "reason")
    rows = [
        (
            str(job.id),
            job.state,
            layer_name(job.problem.layer, ()),
            str(job.problem.m),
            job.device,
            _priority(job),
            str(job.attempts),
            job.worker or "-",
            " ".join((job.reason or "").split()),
        )
        for job in jobs
    ]
    return table(header, rows)


def _priority(job: Job) -> str:
    from autotune.search.demand import ASKED

    if job.is_recheck:
        return "recheck"
    return "user" if job.priority == ASKED else f"{job.priority:.3g}"


def _changes(queue: Queue) -> Iterator[Job]:
    """Every job, and later those that changed; that a lease was renewed is no change."""
    known: dict[int, Job] = {}
    while True:
        for job in queue.jobs():
            seen = replace(job, lease_until=None)
            if known.get(job.id) != seen:
                known[job.id] = seen
                yield job
        time.sleep(_REFRESH_S)


def _show(queue: Queue) -> None:
    """Keep a table of what is not over on the terminal, as much as there is room for."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            rows = console.height - 3
            jobs = [job for state in _ON_SCREEN for job in queue.jobs(state, limit=rows)]
            counts = ", ".join(f"{count} {state}" for state, count in sorted(queue.counts().items()))
            text = f"{counts}\n{_table(jobs[:rows])}" if counts else "the queue is empty"
            live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            time.sleep(_REFRESH_S)
