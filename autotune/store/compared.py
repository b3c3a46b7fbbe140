"""Times that pages compare: of records, sweeps, imports, pulled sets and bundles of channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from autotune.store.fields import RowError
from autotune.store.pages import LAYER_FIELDS, PER_LAYER, WINDOW, Pages, Sweep, its_layer, row_id, same_layer
from autotune.store.pulled import KEPT_SETS
from autotune.store.rows import problem_of, problem_row, pulled_of
from autotune.store.tables import (
    BUNDLE,
    CHANNEL,
    CHANNELS,
    HISTORY,
    ORIGIN,
    PULLED,
    PULLED_SET,
    RECORD,
    TRIAL,
)
from autotune.values.device import Device
from autotune.values.fleet import Pulled
from autotune.values.layer import Layer, Problem
from autotune.values.record import SERVED

LARGEST_BUNDLE = 64 << 20
"""Bytes of a bundle that is read for a page."""


@dataclass(frozen=True, slots=True)
class TimedProblem:
    """A problem, a config of it, and how long that takes."""

    problem: Problem
    config: str
    median_us: float
    low_us: float
    high_us: float


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A bundle that is in the database, with the channels that name it."""

    id: int
    digest: str
    name: str
    channels: Sequence[str]


def recorded(pages: Pages, device: Device, layers: Iterable[Layer]) -> list[TimedProblem]:
    """The records of the layers that models of the device run."""
    return _preferred(pages, RECORD, RECORD.c.device_id == row_id(device), RECORD.c.created_at, layers)


def layers_of_sweeps(pages: Pages, device: Device, sweeps: Sequence[int]) -> list[Layer]:
    """The layers of which the device has records and these sweeps a trial."""
    of_device = RECORD.c.device_id == row_id(device)
    layers = sa.select(*(RECORD.c[name] for name in LAYER_FIELDS)).where(of_device).distinct().subquery()
    record = RECORD.alias()
    same = [record.c[name] == layers.c[name] for name in LAYER_FIELDS]
    problem = [TRIAL.c[name] == record.c[name] for name in (*LAYER_FIELDS, "m")]
    # One value, for which servers look layer by layer and stop at the first, as they would not for EXISTS.
    tried = sa.select(sa.literal(1)).where(
        record.c.device_id == row_id(device), *same, *problem, TRIAL.c.sweep_id.in_(list(sweeps))
    )
    found = tried.limit(1).scalar_subquery().is_not(None)
    return _made(pages, sa.select(layers).where(found))


def fastest(pages: Pages, sweeps: Sequence[int], layers: Iterable[Layer]) -> list[TimedProblem]:
    """Of each problem of the layers, the fastest trial of these sweeps."""
    columns = [TRIAL.c[name] for name in ("m", "median_us", "low_us", "high_us", "config")]
    place = sa.func.row_number().over(partition_by=TRIAL.c.m, order_by=TRIAL.c.median_us).label("place")
    ok = (TRIAL.c.status == "ok") & TRIAL.c.median_us.is_not(None) & TRIAL.c.sweep_id.in_(list(sweeps))
    ranked = sa.select(*columns, place).where(*same_layer(TRIAL), ok).subquery()
    query = sa.select(*(ranked.c[column.name] for column in columns)).where(ranked.c.place == 1)
    found: list[TimedProblem] = []
    for layer in layers:
        found += pages.made(((layer, *row) for row in pages.tuples(query, its_layer(layer))), _timed)
    return found


def layers_imported(pages: Pages, sweeps: Sequence[Sweep]) -> list[Layer]:
    """The layers of the records that came with these imports."""
    newest = (
        HISTORY.c.id > sa.select(sa.func.coalesce(sa.func.max(HISTORY.c.id), 0) - WINDOW).scalar_subquery()
    )
    return _layers(pages, HISTORY, newest & _brought(sweeps))


def imported(pages: Pages, sweeps: Sequence[Sweep], layers: Iterable[Layer]) -> list[TimedProblem]:
    """What these imports brought of the layers."""
    return _preferred(pages, HISTORY, _brought(sweeps), HISTORY.c.at, layers)


def pulled_sets(pages: Pages, devices: Sequence[Device]) -> list[tuple[Pulled, Device]]:
    """The sets that are kept, the newest first, with each of the devices of which they have records."""
    query = sa.select(PULLED_SET, ORIGIN.c.name.label("origin")).join(ORIGIN).order_by(PULLED_SET.c.id.desc())
    kept = [
        each for each in pages.made(pages.rows(query.limit(KEPT_SETS)), pulled_of) if not each.rolled_back
    ]
    in_order = (PULLED.c[name] for name in LAYER_FIELDS)  # in which the index has them
    one = sa.select(PULLED.c.id).order_by(*in_order).limit(1)
    return [(each, its) for each in kept for its in devices if pages.tuples(one.where(_in_set(each, its)))]


def layers_pulled(pages: Pages, which: Pulled, device: Device) -> list[Layer]:
    """The layers of which the set has records of the device."""
    return _layers(pages, PULLED, _in_set(which, device))


def pulled(pages: Pages, which: Pulled, device: Device, layers: Iterable[Layer]) -> list[TimedProblem]:
    """The records of the set, of the layers on the device."""
    return _preferred(pages, PULLED, _in_set(which, device), PULLED.c.created_at, layers)


def bundles(pages: Pages, most: int = 8) -> list[StoredBundle]:
    """The bundles that a channel names, and the newest others; none that is too large."""
    named: dict[int, list[str]] = {}
    for channel in CHANNELS:
        query = sa.select(CHANNEL.c.bundle_id).where(CHANNEL.c.name == channel).order_by(CHANNEL.c.id.desc())
        for (bundle_id,) in pages.tuples(query.limit(1)):
            named.setdefault(bundle_id, []).append(channel)
    query = sa.select(BUNDLE.c.id, BUNDLE.c.digest, BUNDLE.c.name).order_by(
        BUNDLE.c.id.in_(list(named)).desc(), BUNDLE.c.id.desc()
    )
    query = query.where(sa.func.length(BUNDLE.c.content) <= LARGEST_BUNDLE)
    rows = pages.tuples(query.limit(most))
    return [StoredBundle(key, digest, name, named.get(key, ())) for key, digest, name in rows]


def bundle_bytes(pages: Pages, bundle: StoredBundle) -> bytes:
    """The content of the bundle."""
    return pages.large(sa.select(BUNDLE.c.content).where(BUNDLE.c.id == bundle.id), LARGEST_BUNDLE)


def _layers(pages: Pages, table: sa.Table, condition: Any) -> list[Layer]:
    return _made(pages, sa.select(*(table.c[name] for name in LAYER_FIELDS)).where(condition).distinct())


def _made(pages: Pages, query: Any) -> list[Layer]:
    rows = [dict(row) | {"m": 1} for row in pages.rows(query)]
    return sorted(problem.layer for problem in pages.made(rows, problem_of))


def _preferred(
    pages: Pages, table: sa.Table, condition: Any, age: sa.Column[Any], layers: Iterable[Layer]
) -> list[TimedProblem]:
    """Of each problem the row whose mode look-up prefers, and of these the newest."""
    fields = ("m", "median_us", "low_us", "high_us", "config", "mode")
    query = sa.select(*(table.c[name] for name in fields), age.label("age"))
    query = query.where(condition, *same_layer(table), table.c.mode.in_(SERVED))
    query = query.order_by(table.c.id.desc()).limit(PER_LAYER)
    found: list[TimedProblem] = []
    for layer in layers:
        rows = sorted(
            pages.tuples(query, its_layer(layer)), key=lambda row: (-SERVED.index(row.mode), row.age)
        )
        best = {row.m: (layer, *row[:5]) for row in rows}
        found += pages.made(best.values(), _timed)
    return found


def _brought(sweeps: Sequence[Sweep]) -> Any:
    """An import is one transaction, so what it wrote lies between the begin and the end of its sweep."""
    return (HISTORY.c.event == "import") & sa.or_(
        sa.false(),
        *(
            (HISTORY.c.device_id == row_id(its.device)) & HISTORY.c.at.between(its.began, its.ended)
            for its in sweeps
        ),
    )


def _in_set(which: Pulled, device: Device) -> Any:
    until = PULLED.c.until.is_(None) | (PULLED.c.until > which.id)
    return (PULLED.c.device_id == row_id(device)) & (PULLED.c.since <= which.id) & until


def _timed(row: tuple[Layer, Any, Any, Any, Any, Any]) -> TimedProblem:
    layer, m, *times, config = row
    problem = problem_of(problem_row(Problem(layer, 1)) | {"m": m})
    if not all(isinstance(each, float) and each > 0 for each in times):
        raise RowError(f"a time of {problem} does not read")
    return TimedProblem(problem, str(config), *times)
