"""`autotune import`: records from elsewhere become the database's own."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.options import database_option
from autotune.cli.output import problem_fields
from autotune.values.counts import counted
from autotune.values.paths import database_url, sqlite_path

if TYPE_CHECKING:
    from autotune.store.merging import Merged
    from autotune.values.record import Record

_EXAMPLES = """\b
Examples:
  autotune import records/ --dry-run
  autotune import llama-h200-1f2e3d4c5b6a.bundle --trust release"""
_VERDICTS = ("new", "better", "worse", "same")


@click.command(epilog=_EXAMPLES)
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--dry-run", is_flag=True, help="Show what would become of each record; change nothing.")
@click.option("--trust", metavar="KEY", help="Take binaries too, of a bundle that this key signed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per conflict.")
@database_option
def command(path: Path, dry_run: bool, trust: str | None, as_json: bool, db: str | None) -> None:
    """Merge records from elsewhere into the database.

    PATH is a bundle, or a file or folder of autotune export.

    Of two records of one problem, kernel and way of timing the one with evidence stays, then the one of more
    rounds, then the newer. Conflicts go to stdout. All records are stored, or none. Binaries are dropped and
    compiled again from the sources here; --trust takes those of a bundle that KEY signed: the name or
    fingerprint of a trusted key, its public line, or a file with that.
    """
    from autotune.bundles.keys import find_trusted
    from autotune.bundles.taking import import_file
    from autotune.store.store import Store

    trusted = () if trust is None else (find_trusted(trust),)
    with TemporaryDirectory() as empty:
        local = sqlite_path(database_url(db))
        # A dry run of a database that is not there makes none.
        none_yet = dry_run and local is not None and not local.exists()
        with Store.open(Path(empty, "none.db") if none_yet else db) as store:
            done = import_file(store, path, trusted, dry_run)
    for each in done.merged:
        if each.before is not None and each.verdict != "same":
            click.echo(_json(each) if as_json else _conflict(each))
    counts = (f"{sum(each.verdict == verdict for each in done.merged)} {verdict}" for verdict in _VERDICTS)
    would = "would be: " if dry_run else ""
    click.echo(f"{would}{', '.join(counts)}", err=True)
    for reasons, why in ((done.unknown, "not known here"), (done.unbelievable, "not to be believed")):
        if reasons:
            click.echo(f"left out as {why}: {len(reasons)}; the first: {reasons[0]}", err=True)
    if done.dropped_binaries:
        dropped = counted(done.dropped_binaries, "compiled kernel")
        click.echo(f"dropped: {dropped}, to be compiled here on first use; see --trust", err=True)


def _conflict(merged: Merged) -> str:
    before, record = merged.before, merged.entry.record
    assert before is not None
    verdict = "replaced" if merged.verdict == "better" else "kept"
    times = f"{before.config} {before.median_us:.2f} us, there {record.config} {record.median_us:.2f} us"
    return f"{verdict:8}  {record.device}  {record.problem}  {times}"


def _json(merged: Merged) -> str:
    before, record = merged.before, merged.entry.record
    assert before is not None
    told = {"device": record.device, "verdict": merged.verdict}
    return json.dumps(
        problem_fields(record.problem) | told | {"here": _short(before), "there": _short(record)}
    )


def _short(record: Record) -> dict[str, Any]:
    return {
        "config": str(record.config),
        "median_us": record.median_us,
        "low_us": record.low_us,
        "high_us": record.high_us,
        "created_at": record.created_at,
    }
