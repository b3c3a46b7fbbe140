"""`autotune export`: records as text files, for review and for shipping."""

from __future__ import annotations

from pathlib import Path

import click

from autotune.cli.options import database_option

_EXAMPLES = """\b
Examples:
  autotune export records/
  autotune export records/ --samples"""


@click.command(epilog=_EXAMPLES)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--samples", is_flag=True, help="Add a file per device with every trial and its samples.")
@database_option
def command(folder: Path, samples: bool, db: str | None) -> None:
    """Write the records of every device to FOLDER.

    One JSON Lines file per device, sorted, in the form of the records that autotune ships. With --samples a
    second one, DEVICE.samples.jsonl, has every trial of their problems, for analysis elsewhere. The paths of
    the files go to stdout.
    """
    from autotune.records.exchange import export
    from autotune.store.store import Store

    with Store.open(db) as store:
        for path in export(store, folder, samples):
            click.echo(path)
