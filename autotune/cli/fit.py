"""`autotune fit`: learn from the trials of a database what a config takes where nobody swept."""

from __future__ import annotations

from pathlib import Path

import click

from autotune.cli.options import database_option

_EXAMPLES = """\b
Examples:
  autotune fit
  autotune fit --db fleet.db --out fits/"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for a file per device.  [default: beside the database, where look-up finds them]",
)
@database_option
def command(out: Path | None, db: str | None) -> None:
    """Fit a model of time to the trials of each device.

    With it, look-up predicts the fastest config of a problem that has no record. Trials of today's kernels
    count, with any driver, and what autotune's own records of the device say. A fit takes a minute for 30,000
    trials. The paths of the files go to stdout.
    """
    from autotune.prediction.making import fits
    from autotune.store.store import Store

    with Store.open(db) as store:
        for path, summary in fits(store, db, out):
            click.echo(path)
            click.echo(summary, err=True)
