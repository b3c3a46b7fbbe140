"""`autotune pull`: records from a fleet's database or a bundle into the local file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from autotune.cli.options import (
    channel_option,
    database_option,
    not_blank,
    wanted_options,
    wanted_records,
    watch_option,
)
from autotune.cli.watching import repeated
from autotune.values.counts import counted

if TYPE_CHECKING:
    from autotune.bundles.pull import PullResult

_EXAMPLES = """\b
Examples:
  autotune pull postgresql://host7@db/autotune
  autotune pull postgresql://host7@db/autotune --channel stable --watch 5m
  autotune pull https://example.org/llama-h200.bundle --shapes llama7b"""


@click.command(epilog=_EXAMPLES)
@click.argument("source", callback=not_blank)
@channel_option
@wanted_options
@watch_option
@database_option
def command(source: str, channel: str | None, watch: float | None, db: str | None, **wanted: Any) -> None:
    """Bring what others measured into the local database.

    It lies there beside what was measured here; without --device it is of the devices here. SOURCE is a
    database, the file of a bundle, or a bundle's HTTP address. Bundles must be signed by a key of `autotune
    keys`. Only what is new is fetched; a download that broke off is gone on with; and all of it is in force
    at once, for models that load from then on. `autotune rollback` undoes it.
    """
    from autotune.bundles.pull import pull
    from autotune.store.store import Store

    which = wanted_records(devices_here=True, **wanted)
    said = ""

    def once() -> None:
        nonlocal said
        with Store.open(db) as store:
            done = pull(store, source, which, channel, again=watch is None)
        now = _told(done)
        if watch is None or done.changed is not None:
            click.echo(now)
        elif now != said:
            click.echo(now, err=True)
        said = now

    repeated(once, watch)


def _told(done: PullResult) -> str:
    have = f"{counted(done.offered, 'record')} from {done.origin}"
    if done.undone:
        return f"a rollback undid this, and autotune pull without --watch brings it back: {have}"
    if done.devices:
        have += f", which has some of {', '.join(done.devices)}: see --device and --shapes"
    if done.changed is None:
        return f"nothing new: {have}"
    return f"set {done.changed.name}: {done.records} new, {have}"
