"""`autotune db`: look after the database."""

from __future__ import annotations

import click

from autotune.cli.options import database_option


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
