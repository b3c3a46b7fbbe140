"""`autotune db`: look after the database."""

from __future__ import annotations

import click

from autotune.cli.options import database_option
from autotune.values.counts import counted


@click.group(epilog="Example: autotune db upgrade")
def command() -> None:
    """Look after the database."""


@command.command(epilog="\b\nExample:\n  autotune db upgrade --db ./autotune.db")
@database_option
def upgrade(db: str | None) -> None:
    """Bring the database to the newest schema.

    Where there is no database, one is created.
    """
    from autotune.store.schema import upgrade as upgrade_schema
    from autotune.values.paths import database_url, shown

    revision = upgrade_schema(db)
    click.echo(f"{shown(database_url(db))} is at schema revision {revision}")


@command.command(epilog="\b\nExamples:\n  autotune db prune --dry-run\n  autotune db prune --trials")
@click.option("--trials", is_flag=True, help="Also trials that no record is of; sweeps measure them again.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@database_option
def prune(trials: bool, dry_run: bool, db: str | None) -> None:
    """Remove what nothing reads any more.

    That is: compiled kernels of no record, jobs that are done, and the samples of trials, which only
    `autotune export --samples` shows. Records stay, and trials without --trials. Daemons and sweeps may
    run meanwhile. On PostgreSQL only the database's owner may do this.
    """
    from autotune.store.prune import prune as pruned
    from autotune.store.store import Store

    with Store.open(db) as store:
        gone = pruned(store, trials, dry_run)
        rows = ", ".join(counted(count, name) for name, count in gone.items() if name != "sample")
        samples = f"samples of {counted(gone['sample'], 'trial')}"
        click.echo(f"{store.name}: {'would remove' if dry_run else 'removed'} {rows}, {samples}")
