"""`autotune daemon`: tune what is queued, for as long as it runs."""

from __future__ import annotations

import click

from autotune.cli.options import chosen_executors, database_option, place_options, seconds

_EXAMPLES = """\b
Examples:
  autotune daemon
  autotune daemon --device cuda:0 --budget 10m --db postgresql://worker@db/autotune
  autotune daemon --executor ray --address head:6379 --db postgresql://worker@db/autotune
  autotune daemon --once"""


@click.command(epilog=_EXAMPLES)
@place_options
@database_option
@click.option(
    "--budget",
    callback=seconds,
    metavar="DURATION",
    help="Tuning time per hour, as 10m.  [default: no limit]",
)
@click.option(
    "--rechecks",
    type=click.IntRange(min=0),
    default=12,
    metavar="N",
    help="Of records that another driver or compiler made, per hour and device.  [default: 12]",
)
@click.option("--once", is_flag=True, help="End when nothing is left to do now, or no budget.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Where /healthz and /metrics are on 127.0.0.1; 0: any free port.  [default: 9464, if it is free]",
)
def command(
    device: str,
    executor: str,
    address: str | None,
    allow_busy: bool,
    db: str | None,
    budget: float | None,
    rechecks: int,
    once: bool,
    port: int | None,
) -> None:
    """Tune queued problems for the devices, one after the other, until it is told to stop.

    It works while nobody else uses the device: a GPU that another process holds is waited for. SIGTERM,
    SIGHUP and Ctrl-C let the running job end within 10 s, else it is given back to the queue; so it is when
    a second one comes.
    A database that is away is waited for; results are kept until they can be stored.

    Events go to stderr, as JSON Lines where that is no terminal.
    """
    from autotune.daemon.events import log_to_stderr
    from autotune.daemon.service import serve
    from autotune.daemon.settings import Settings

    log_to_stderr()
    settings = Settings(budget_s=budget, allow_busy=allow_busy, once=once, rechecks=rechecks)
    executors = chosen_executors(device, executor, address, allow_busy, db)
    serve(executors, db, settings, port, here=executor == "local")
