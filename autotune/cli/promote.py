"""`autotune promote`: have a channel of a fleet name a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from autotune.cli.options import database_option, reason_option
from autotune.values.paths import database_url

_EXAMPLES = """\b
Examples:
  autotune promote llama-1f2e3d4c5b6a.bundle --channel candidate --db postgresql://owner@db/autotune
  autotune promote llama-1f2e3d4c5b6a.bundle --force --reason 'hotfix' --db postgresql://owner@db/autotune"""


@click.command(epilog=_EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--channel",
    type=click.Choice(("stable", "candidate")),
    default="stable",
    help="Which.  [default: stable]",
)
@click.option("--force", is_flag=True, help="Without a recheck that confirms it; needs a --reason.")
@reason_option
@database_option
def command(file: Path, channel: str, force: bool, reason: str | None, db: str | None) -> None:
    """Have a channel of the database name a bundle.

    A trusted key must have signed the bundle FILE. Hosts that follow the channel have it with their next
    pull. For `stable` a recheck in this database must have kept a record of each device model of the bundle
    since it was measured, and none may have refuted one. `autotune rollback --channel` goes back; `autotune
    history --channel` shows what it named, and why.
    """
    if force != (reason is not None):
        raise click.UsageError("--force and --reason go together.")
    from autotune.bundles.format import read_bytes
    from autotune.bundles.promotion import promote
    from autotune.store.store import Store

    content = read_bytes(file)
    with Store.open_existing(database_url(db)) as store:
        bundle, why = promote(store, content, str(file), channel, reason)
        click.echo(f"{channel} is {bundle.id}: {why}")
