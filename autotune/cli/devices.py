"""`autotune devices`: who tunes for which device, and since when nothing was heard of it."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from autotune.cli.options import database_option
from autotune.console.text import table


@click.command(epilog="\b\nExamples:\n  autotune devices\n  autotune devices --json")
@click.option("--json", "as_json", is_flag=True, help="One list of objects.")
@database_option
def command(as_json: bool, db: str | None) -> None:
    """Show the workers of every device, with the job that each has.

    Those of the last week, on any machine that shares the database. A worker says every few seconds that it
    lives: one not seen for minutes has ended without a word, and its job goes to another. Ages are by the
    database's clock.
    """
    from autotune.store.queue import Queue
    from autotune.store.store import Store

    with Store.open(db) as store:
        queue = Queue(store)
        workers = sorted(queue.workers(), key=lambda worker: (worker.device, worker.name))
        now = queue.clock()
    ages = [now - worker.last_seen for worker in workers]
    if as_json:
        shown = [asdict(worker) | {"seen_s": age} for worker, age in zip(workers, ages, strict=True)]
        click.echo(json.dumps(shown, indent=2))
        return
    if not workers:
        click.echo("no worker in the last week; autotune daemon starts one", err=True)
        return
    header = ("device", "arch", "state", "job", "seen", "worker")
    rows = [
        (each.device, each.arch, each.state, str(each.job_id or "-"), _ago(age), each.name)
        for each, age in zip(workers, ages, strict=True)
    ]
    click.echo(table(header, rows))


def _ago(age_s: float) -> str:
    for unit, seconds in (("d", 86_400), ("h", 3600), ("min", 60)):
        if age_s >= seconds:
            return f"{age_s / seconds:.0f} {unit} ago"
    return f"{max(0.0, age_s):.0f} s ago"
