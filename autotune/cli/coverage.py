"""`autotune coverage`: how much of a model's traffic runs what was measured for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.options import chosen_device, chosen_shapes, chosen_tokens, layer_options
from autotune.console.text import table

if TYPE_CHECKING:
    from autotune.records.coverage import Coverage

_REQUIREMENT_NOT_MET = 3
_EXAMPLES = """\b
Examples:
  autotune coverage llama7b
  autotune coverage ./my-model --require 95%
  autotune coverage ./my-model --tokens histogram.json --require 95%"""


def _share(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """A share from 0 to 1, from `95%`."""
    if text is None:
        return None
    number = text.removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if text == number or not 0 <= share <= 1:
        raise click.BadParameter(f"{text!r} is not a share of calls, as 95%")
    return share


@click.command(epilog=_EXAMPLES)
@click.argument("model")
@click.option("--require", callback=_share, metavar="95%", help="Exit 3 if fewer calls have a record.")
@click.option(
    "--tokens",
    type=click.Path(path_type=Path),
    help='Calls by number of tokens, as {"1": 900, "33": 12}; autotune.record_traffic writes such a file.  '
    "[default: every bucket alike]",
)
@click.option("--json", "as_json", is_flag=True, help="One object.")
@layer_options
def command(
    model: str,
    require: float | None,
    tokens: Path | None,
    as_json: bool,
    m: tuple[int, ...] | None,
    device: str,
    db: str | None,
    **layers: Any,
) -> None:
    """Show how much of MODEL's traffic runs a config that was measured for it.

    For each bucket: its share of the calls, and which share of these is answered by an `exact` record (of the
    database, or shipped), `predicted`, or the `default`. MODEL is what --shapes of the other verbs takes.
    """
    if m and tokens:
        raise click.UsageError("--m and --tokens exclude each other; the histogram names the tokens.")
    chosen = chosen_shapes((model,), **layers)
    from autotune.records.coverage import coverage, read_traffic
    from autotune.records.lookup import Lookup

    found = chosen_device(device)
    traffic = read_traffic(tokens) if tokens else dict.fromkeys(chosen_tokens(m, found), 1.0)
    shown = coverage(Lookup(found, db), (shape.layer for shape in chosen), traffic)
    click.echo(json.dumps(_fields(shown), indent=2) if as_json else _table(shown))
    if require is not None and shown.exact < require:
        click.echo(f"calls with a record: {shown.exact:.1%}, fewer than {require:.1%}", err=True)
        click.get_current_context().exit(_REQUIREMENT_NOT_MET)


def _fields(shown: Coverage) -> dict[str, Any]:
    from autotune.records.coverage import SOURCES

    buckets = [{"m": each.m, "traffic": each.traffic, **each.sources} for each in shown.buckets]
    shares = {source: shown.share(source) for source in SOURCES}
    return {"device": shown.device, "layers": shown.layers, **shares, "buckets": buckets}


def _table(shown: Coverage) -> str:
    from autotune.records.coverage import SOURCES

    rows = [
        (str(each.m), *(f"{share:.1%}" for share in (each.traffic, *each.sources.values())))
        for each in shown.buckets
    ]
    total = ("all", "100.0%", *(f"{shown.share(source):.1%}" for source in SOURCES))
    return table(("m", "calls", *SOURCES), [*rows, total])
