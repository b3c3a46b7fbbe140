"""`autotune report`: the pages of `autotune serve` as files."""

from __future__ import annotations

from pathlib import Path

import click

from autotune.cli.options import database_option
from autotune.values.counts import counted

_EXAMPLES = """\b
Examples:
  autotune report ./report
  autotune report ./report --problems 5000 --db ./autotune.db"""


@click.command(epilog=_EXAMPLES)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@database_option
@click.option(
    "--problems",
    type=click.IntRange(min=0),
    default=500,
    show_default=True,
    help="How many problems have a page of their own; the others are seen on maps only.",
)
def command(folder: Path, db: str | None, problems: int) -> None:
    """Write the pages of `autotune serve` into FOLDER as files.

    They need no server: open index.html, keep the folder as an artifact of CI, or copy it to a web server.
    Files of an earlier report are replaced.
    """
    from autotune.cli.web import needed

    with needed():
        from autotune.web.report import write_report

    written = write_report(folder, db, problems)
    click.echo(folder / "index.html")
    click.echo(f"{counted(written, 'page')} written", err=True)
