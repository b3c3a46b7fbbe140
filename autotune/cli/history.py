"""`autotune history`: what became of records, and what channels named."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.options import (
    channel_option,
    database_option,
    names_no_layer,
    wanted_options,
    wanted_records,
)
from autotune.cli.output import problem_fields
from autotune.console.text import layer_name, microseconds, table
from autotune.values.counts import counted
from autotune.values.paths import database_url

if TYPE_CHECKING:
    from autotune.values.event import Event

_EXAMPLES = """\b
Examples:
  autotune history --shapes llama7b
  autotune history --require steady
  autotune history --channel stable --db postgresql://owner@db/autotune"""
_REQUIREMENT_NOT_MET = 3


@click.command(epilog=_EXAMPLES)
@wanted_options
@channel_option
@click.option(
    "--require",
    type=click.Choice(("steady",)),
    help="Exit 3 if the last time of a record differs from the one before beyond noise.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event.")
@database_option
def command(
    channel: str | None,
    require: str | None,
    as_json: bool,
    db: str | None,
    device: tuple[str, ...],
    **layers: Any,
) -> None:
    """Show each time that records were measured.

    The oldest is first. `kept`, `replaced` and `dropped` are verdicts of rechecks. A change is the time over
    the one before, of the same kernel, where their 95 % intervals are disjoint and they differ by 3 % or
    more.
    """
    if channel is not None and (require or device or not names_no_layer(**layers)):
        raise click.UsageError("--channel shows what a channel named; leave out what is of records.")
    from autotune.store.history import history
    from autotune.store.store import Store

    which = wanted_records(device=device, **layers)
    with Store.open_existing(database_url(db)) as store:
        if channel is not None:
            _show_channel(store, channel, as_json)
            return
        events = [
            event
            for event in history(store, which.layers)
            if which.devices is None or event.device in which.devices
        ]
    if as_json:
        for event in events:
            click.echo(json.dumps(_fields(event)))
    elif events:
        click.echo(_table(events))
    if require and not events:
        click.echo("nothing was measured of what was asked for, so nothing is steady", err=True)
        click.get_current_context().exit(_REQUIREMENT_NOT_MET)
    last = {each.kernel: each for each in events}
    changed = [event for event in last.values() if event.change is not None]
    if changed:
        first = (
            f"{changed[0].problem} on {changed[0].device} takes {changed[0].change:.3f} of its time before"
        )
        click.echo(f"changed beyond noise: {counted(len(changed), 'record')}; the first: {first}", err=True)
        if require:
            click.get_current_context().exit(_REQUIREMENT_NOT_MET)


def _show_channel(store: Any, channel: str, as_json: bool) -> None:
    from autotune.store.channels import promotions

    for each in promotions(store, channel):
        click.echo(json.dumps(asdict(each)) if as_json else f"{each.at}  {each.bundle}  {each.reason}")


def _fields(event: Event) -> dict[str, Any]:
    fields = asdict(event)
    del fields["problem"]
    return {**problem_fields(event.problem), **fields, "at": event.moment}


def _table(events: list[Event]) -> str:
    header = ("at", "layer", "m", "device", "event", "us", "change", "MHz", "°C", "driver", "config")
    return table(
        header,
        [
            (
                event.moment,
                layer_name(event.problem.layer, ()),
                str(event.problem.m),
                event.device,
                event.event,
                microseconds(event.median_us),
                "" if event.change is None else f"{event.change:.3f}x",
                "-" if event.clock_mhz is None else str(event.clock_mhz),
                "-" if event.temperature_c is None else str(event.temperature_c),
                event.driver,
                event.config,
            )
            for event in events
        ],
    )
