"""`autotune report`: the pages of `autotune serve` as files."""

from __future__ import annotations

from pathlib import Path

import click

from autotune.cli.options import database_option
from autotune.values.counts import counted

_EXAMPLES = """\b
Examples:
  autotune report ./report
  autotune report ./report --pages 5000 --db ./autotune.db"""


@click.command(epilog=_EXAMPLES)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@database_option
@click.option(
    "--pages",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Write at most so many; what is fewer clicks away goes first.",
)
def command(folder: Path, db: str | None, pages: int) -> None:
    """Write the pages of `autotune serve` into FOLDER as files.

    They need no server: open index.html, keep the folder as an artifact of CI, or copy it to a web server.
    Links lead to the pages that were written. Files of an earlier report are replaced.
    """
    from autotune.cli.web import needed

    with needed():
        from autotune.web.report import write_report

    written = write_report(folder, db, pages)
    click.echo(folder / "index.html")
    click.echo(f"{counted(written, 'page')} written", err=True)
