"""`autotune rollback`: back to what was in force before."""

from __future__ import annotations

import click

from autotune.cli.options import channel_option, database_option, reason_option

_EXAMPLES = """\b
Examples:
  autotune rollback
  autotune rollback --channel stable --db postgresql://owner@db/autotune"""


@click.command(epilog=_EXAMPLES)
@channel_option
@reason_option
@database_option
def command(channel: str | None, reason: str | None, db: str | None) -> None:
    """Undo the last pull or promotion.

    That is the last pull into the local database or, with --channel, the last promotion. Models that load
    from then on have the former answers; those that are loaded keep their plans. Hosts that follow a channel
    come to its former bundle with their next pull. `autotune pull --watch` does not bring back what was
    undone here, until its source offers something else.
    """
    if channel is None and reason is not None:
        raise click.UsageError("--reason is kept with a channel; give it with --channel.")
    from autotune.store import channels, pulled
    from autotune.store.store import Store
    from autotune.values.paths import database_url

    with Store.open_existing(database_url(db)) as store:
        if channel is None:
            undone, before = pulled.roll_back(store)
            now = f"set {before.name} of {before.origin}" if before else "nothing that was pulled"
            click.echo(f"set {undone.name} of {undone.origin} is undone; in force is {now}")
        else:
            left, now_named = channels.roll_back(store, channel, f"rollback {reason or ''}".rstrip())
            click.echo(f"{channel} is {now_named.bundle} again, no longer {left.bundle}")
