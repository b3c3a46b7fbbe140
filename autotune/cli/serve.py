"""`autotune serve`: the database as pages."""

from __future__ import annotations

import click

from autotune.cli.options import database_option

_EXAMPLES = """\b
Examples:
  autotune serve
  autotune serve --db postgresql://reader@db/autotune --port 9000
  autotune serve --host 0.0.0.0 --token "$(openssl rand -hex 16)\""""


@click.command(epilog=_EXAMPLES)
@database_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8347, show_default=True, help="Port; 0: any free one."
)
@click.option(
    "--token",
    envvar="AUTOTUNE_TOKEN",
    help="What a browser must show once, as ?token=…; an address that others reach needs one. "
    "AUTOTUNE_TOKEN keeps it out of the list of processes.",
)
def command(db: str | None, host: str, port: int, token: str | None) -> None:
    """Show the database as pages in a browser.

    Coverage of layers and tokens, every trial of a problem, comparisons, the queue as it moves, kernels and
    figures. Nothing is written. The address goes to stdout; Ctrl-C ends it.
    """
    from autotune.cli.web import needed

    with needed():
        from autotune.web.app import serve

    serve(db, host, port, token, click.echo)
