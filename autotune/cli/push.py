"""`autotune push`: what models missed here goes to the queue of a fleet's database."""

from __future__ import annotations

import click

from autotune.cli.options import database_option, not_blank, watch_option
from autotune.cli.watching import repeated
from autotune.values.counts import counted

_EXAMPLES = """\b
Examples:
  autotune push postgresql://host7@db/autotune
  autotune push postgresql://host7@db/autotune --watch 5m"""


@click.command(epilog=_EXAMPLES)
@click.argument("target", callback=not_blank)
@watch_option
@database_option
def command(target: str, watch: float | None, db: str | None) -> None:
    """Queue elsewhere what models missed here.

    TARGET is a database, whose daemons tune that. What has a record there by now is left out, and so is what
    other kernel sources ran.
    """
    from autotune.records.misses import miss_file
    from autotune.search.demand import queue_misses
    from autotune.store.store import Store

    def once() -> None:
        with Store.open_existing(target) as store:
            new = queue_misses(store, miss_file(db))
            click.echo(f"{counted(new, 'new job')} at {store.name}")

    repeated(once, watch)
