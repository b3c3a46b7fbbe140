"""What the pages of `autotune serve` show of a database: every query of theirs, each by an index and bounded.

A row that does not read is left out; `bad` says why. Pages know the values that come from here, no tables.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from autotune.store.clock import now
from autotune.store.fields import RowError, in_short, moment
from autotune.store.rows import (
    PROBLEM_FIELDS,
    device_of,
    environment_of,
    job_of,
    problem_of,
    problem_row,
    record_of,
    trial_of,
    worker_of,
)
from autotune.store.tables import DEVICE, ENVIRONMENT, JOB, OPEN, RECORD, SWEEP, TRIAL, WORKER, with_device
from autotune.store.viewing import Viewer
from autotune.values.device import Device
from autotune.values.job import Job, Worker
from autotune.values.layer import Layer, Problem
from autotune.values.record import SERVED, Environment, Record, Trial

WINDOW = 50_000
"""Trials, jobs and records are counted among so many of the newest."""
ATTEMPTS = 400
"""Of a problem, so many of the newest trials are read."""
PER_LAYER = 2_000
"""Of a layer, so many of the newest records."""
_LONGEST_ERROR = 2_000
_HOUR_S = 3600
_SERVED = RECORD.c.mode.in_(SERVED)

LAYER_FIELDS = tuple(name for name in PROBLEM_FIELDS if name != "m")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class SeenRecord:
    """A record with the environment that it was measured in."""

    record: Record
    environment: Environment


@dataclass(frozen=True, slots=True)
class SeenTrial:
    """A trial of a problem, without its samples; `sweep` began at `started_at`, in UTC."""

    trial: Trial
    sweep: int
    started_at: str
    environment: Environment


@dataclass(frozen=True, slots=True)
class Sweep:
    """A run over many problems; `status` is running, finished, interrupted or failed.

    It began and ended at Unix seconds. What was imported counts as one, and has its `source`.
    """

    id: int
    device: Device
    driver: str
    compiler: str
    began: float
    ended: float | None
    status: str
    source: str | None

    @property
    def started_at(self) -> str:
        """When it began, in UTC as ISO 8601."""
        return moment(self.began, "started_at")


@dataclass(frozen=True, slots=True)
class Trouble:
    """A trial that failed, or whose result was wrong."""

    problem: Problem
    config: str
    status: str
    error: str


class Pages:
    """One state of a database, within a transaction. `bad` collects what was wrong with rows left out."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self.bad: list[str] = []

    def devices(self) -> list[Device]:
        """Every device model that a sweep or daemon ran on, by name; `index` is 0."""
        # One that jobs name only has no cores.
        query = sa.select(DEVICE).where(DEVICE.c.cores > 0).order_by(DEVICE.c.name, DEVICE.c.arch)
        rows = self.rows(query)
        return list(self.made(rows, device_of))

    def layers(self, devices: Sequence[Device]) -> list[Layer]:
        """The layers that have records on the devices, in order."""
        fields = [RECORD.c[name] for name in LAYER_FIELDS]
        query = sa.select(*fields).where(RECORD.c.device_id.in_(_ids(devices))).distinct()
        rows = [dict(row) | {"m": 1} for row in self.rows(query)]
        return sorted(problem.layer for problem in self.made(rows, problem_of))

    def records(self, device: Device, layers: Iterable[Layer], evidence: bool = True) -> list[Record]:
        """The records that answer models, of the layers on the device; of each layer the oldest first."""
        columns = [column for column in RECORD.c if evidence or column.name != "evidence"]
        more = [] if evidence else [sa.null().label("evidence")]
        query = sa.select(*columns, *more).where(
            RECORD.c.device_id == row_id(device), _SERVED, *same_layer(RECORD)
        )
        query = query.order_by(RECORD.c.id.desc()).limit(PER_LAYER)
        found: list[Record] = []
        for layer in layers:
            rows = self.rows(query, its_layer(layer))
            found += self.made(reversed(rows), lambda row: _record(row, device))
        return found

    def records_of(self, device: Device, problem: Problem) -> list[SeenRecord]:
        """The records of the problem on the device, the oldest first."""
        query = sa.select(RECORD, *_environment()).join(ENVIRONMENT)
        query = query.where(RECORD.c.device_id == row_id(device), *_same(RECORD, problem))
        rows = self.rows(query.order_by(RECORD.c.created_at.desc(), RECORD.c.id.desc()).limit(64))
        return list(
            self.made(reversed(rows), lambda row: SeenRecord(_record(row, device), environment_of(row)))
        )

    def like(self, device: Device, tokens: Iterable[int], most: int = 500) -> list[Record]:
        """Records of the device for these numbers of tokens."""
        columns = [column for column in RECORD.c if column.name != "evidence"]
        query = sa.select(*columns, sa.null().label("evidence"))
        query = query.where(RECORD.c.device_id == row_id(device), _SERVED, RECORD.c.m.in_(list(tokens)))
        query = query.limit(most)
        return list(self.made(self.rows(query), lambda row: _record(row, device)))

    def attempts(self, device: Device, problem: Problem) -> list[SeenTrial]:
        """The newest ATTEMPTS trials of the problem on the device, the oldest first."""
        query = sa.select(
            *_trial_columns(), SWEEP.c.started_at, TRIAL.c.sweep_id, *_environment()
        ).select_from(TRIAL.join(SWEEP).join(ENVIRONMENT))
        query = query.where(SWEEP.c.device_id == row_id(device), *_same(TRIAL, problem))
        rows = self.rows(query.order_by(TRIAL.c.id.desc()).limit(ATTEMPTS))

        def attempt(row: Mapping[str, Any]) -> SeenTrial:
            started_at = moment(row["started_at"], "started_at")
            return SeenTrial(trial_of(row), row["sweep_id"], started_at, environment_of(row))

        return list(self.made(reversed(rows), attempt))

    def sweeps(self, most: int = 100) -> list[Sweep]:
        """The newest sweeps and imports, the newest first."""
        columns = (SWEEP.c.id.label("sweep_id"), SWEEP.c.started_at, SWEEP.c.finished_at, SWEEP.c.status)
        versions = (ENVIRONMENT.c.driver, ENVIRONMENT.c.compiler)
        query = sa.select(*columns, *versions, DEVICE).select_from(SWEEP.join(DEVICE).join(ENVIRONMENT))
        rows = self.rows(query.order_by(SWEEP.c.id.desc()).limit(most))
        sources = self._sources([row["sweep_id"] for row in rows])

        def sweep(row: Mapping[str, Any]) -> Sweep:
            moment(row["started_at"], "started_at")  # checks it
            driver, compiler, status = (str(row[name]) for name in ("driver", "compiler", "status"))
            began, ended = row["started_at"], row["finished_at"]
            source = sources.get(row["sweep_id"])
            return Sweep(row["sweep_id"], device_of(row), driver, compiler, began, ended, status, source)

        return list(self.made(rows, sweep))

    def _sources(self, sweeps: Sequence[int]) -> dict[int, str]:
        """Of those of the sweeps that are imports, what was imported."""
        said = sa.cast(SWEEP.c.arguments, sa.String)
        query = sa.select(SWEEP.c.id, said).where(SWEEP.c.id.in_(list(sweeps)), said.like('{"import":%'))
        try:
            return {sweep: str(json.loads(text)["import"]) for sweep, text in self.tuples(query)}
        except (sa.exc.DataError, ValueError):
            # One has more than a page reads, or is damaged: it is no import. The others may be.
            half = len(sweeps) // 2
            return self._sources(sweeps[:half]) | self._sources(sweeps[half:]) if half else {}

    def wins(self, device: Device) -> list[tuple[str, int, int]]:
        """Of the device's records: config, number of tokens, and how many records have both."""
        newest = RECORD.c.id > _first(RECORD)
        query = sa.select(RECORD.c.config, RECORD.c.m, sa.func.count())
        query = query.where(RECORD.c.device_id == row_id(device), newest).group_by(
            RECORD.c.config, RECORD.c.m
        )
        return [(str(config), m, count) for config, m, count in self.tuples(query) if type(m) is int]

    def outcomes(self, device: Device) -> list[tuple[str, str, int]]:
        """Config, status and count of the device's trials among the newest WINDOW of all."""
        query = sa.select(TRIAL.c.config, TRIAL.c.status, sa.func.count())
        query = query.where(TRIAL.c.id > _first(TRIAL), TRIAL.c.sweep_id.in_(_sweeps(device)))
        rows = self.tuples(query.group_by(TRIAL.c.config, TRIAL.c.status))
        return [(str(config), str(status), count) for config, status, count in rows]

    def troubles(self, device: Device, most: int = 200) -> list[Trouble]:
        """The newest of the device's trials that failed or were wrong, among the newest WINDOW of all."""
        query = sa.select(*_trial_columns()).where(
            TRIAL.c.id > _first(TRIAL),
            TRIAL.c.status.in_(("failed", "wrong")),
            TRIAL.c.sweep_id.in_(_sweeps(device)),
        )
        rows = self.rows(query.order_by(TRIAL.c.id.desc()).limit(most))

        def trouble(row: Mapping[str, Any]) -> Trouble:
            trial = trial_of(row)
            return Trouble(trial.problem, str(trial.config), trial.status, trial.error or "")

        return list(self.made(rows, trouble))

    def job_counts(self) -> dict[str, int]:
        """Jobs by state: all that are open, and the others among the newest WINDOW."""
        count = sa.select(JOB.c.state, sa.func.count()).group_by(JOB.c.state)
        newest = count.where(JOB.c.id > _first(JOB))
        found: dict[str, int] = {}
        for query in (newest, count.where(OPEN)):
            found.update({str(state): number for state, number in self.tuples(query)})
        return found

    def jobs(self, state: str, most: int, skip: int = 0) -> list[Job]:
        """Jobs of the state: open ones as they are claimed, of others the newest among the newest WINDOW."""
        query = with_device(JOB).where(JOB.c.state == state).limit(most).offset(skip)
        if state in ("queued", "running"):
            query = query.where(OPEN).order_by(JOB.c.priority.desc(), JOB.c.id)
        else:
            query = query.where(JOB.c.id > _first(JOB)).order_by(JOB.c.id.desc())
        return list(self.made(self.rows(query), job_of))

    def job(self, job_id: int) -> Job | None:
        """The job, None when it is not there."""
        return next(self.made(self.rows(with_device(JOB).where(JOB.c.id == job_id)), job_of), None)

    def workers(self) -> list[Worker]:
        """Every worker of the last week, by device and name."""
        query = with_device(WORKER).order_by(DEVICE.c.name, WORKER.c.name).limit(500)
        return list(self.made(self.rows(query), worker_of))

    def clock(self) -> float:
        """The database's time in Unix seconds."""
        return float(self._connection.execute(sa.select(now())).scalar_one())

    def stored_since(self, since: float) -> dict[int, int]:
        """How many of the newest WINDOW records are of each hour, counted as Unix time, from `since` on."""
        hour = sa.cast(RECORD.c.created_at, sa.BigInteger) // _HOUR_S
        query = sa.select(hour, sa.func.count()).group_by(hour)
        query = query.where(RECORD.c.id > _first(RECORD), RECORD.c.created_at >= since)
        return dict(map(tuple, self.tuples(query)))

    def rows(self, query: Any, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """As `tuples`, with the names of the columns."""
        return [row._mapping for row in self.tuples(query, values)]

    def tuples(self, query: Any, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """The rows of the query.

        Raises:
            RowError: a value of one is not of its column's type.
        """
        try:
            return self._connection.execute(query, values or {}).all()
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise RowError(f"a value does not read: {in_short(error)}") from error

    def made(self, rows: Iterable[Any], make: Callable[[Any], _Value]) -> Iterator[_Value]:
        """What `make` makes of each row; of one that does not read nothing, and `bad` says why."""
        for row in rows:
            try:
                yield make(row)
            except (RowError, ValueError, TypeError, OverflowError) as error:
                self.bad.append(str(error))

    def large(self, query: Any, most: int) -> bytes:
        """The one value of the query, of up to `most` bytes, which are more than a page reads otherwise."""
        driver = self._connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection) and sys.version_info >= (3, 11):
            driver.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, most)  # until the end of the transaction
        return bytes(self._connection.execute(query).scalar_one())


@contextmanager
def looked_at(viewer: Viewer) -> Iterator[Pages]:
    """One state of the database, for one page.

    Raises:
        DatabaseError: the database cannot be read, or is of another schema revision.
    """
    with viewer.snapshot() as connection:
        yield Pages(connection)


def _ids(devices: Sequence[Device]) -> Any:
    return sa.select(DEVICE.c.id).where(
        sa.or_(sa.false(), *((DEVICE.c.name == each.name) & (DEVICE.c.arch == each.arch) for each in devices))
    )


def row_id(device: Device) -> Any:
    """The id of the device model, as a subquery."""
    return _ids([device]).scalar_subquery()


def _sweeps(device: Device) -> Any:
    return sa.select(SWEEP.c.id).where(SWEEP.c.device_id == row_id(device))


def _same(table: sa.Table, problem: Problem) -> list[Any]:
    return [table.c[name] == value for name, value in problem_row(problem).items()]


def same_layer(table: sa.Table) -> list[Any]:
    """The rows of a layer, which `its_layer` gives to the query."""
    return [table.c[name] == sa.bindparam(f"its_{name}") for name in LAYER_FIELDS]


def its_layer(layer: Layer) -> dict[str, Any]:
    """What `same_layer` asks for."""
    row = problem_row(Problem(layer, 1))
    return {f"its_{name}": row[name] for name in LAYER_FIELDS}


def _environment() -> list[Any]:
    return [ENVIRONMENT.c[name] for name in ("driver", "compiler", "torch", "version", "sources")]


def _trial_columns() -> list[Any]:
    """Those of a trial without its samples, and of its error no more than a page shows."""
    left_out = (
        sa.literal(b"").label("samples"),
        sa.func.substr(TRIAL.c.error, 1, _LONGEST_ERROR).label("error"),
    )
    names = {column.name for column in TRIAL.c} - {"samples", "error", "sweep_id"}
    return [*(column for column in TRIAL.c if column.name in names), *left_out]


def _first(table: sa.Table) -> Any:
    """The id behind which the newest WINDOW rows are."""
    return sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0) - WINDOW).scalar_subquery()


def _record(row: Mapping[str, Any], device: Device) -> Record:
    return record_of(row, device.name, device.arch, row["source_hash"])
