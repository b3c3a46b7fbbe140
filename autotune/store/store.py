"""The store: every trial and record with its device and environment, in SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from autotune.store.database import Database
from autotune.store.results import close_sweep, open_sweep, put_device, write_result
from autotune.store.rows import PROBLEM_FIELDS, device_of, environment_of, problem_row, record_of, trial_of
from autotune.store.tables import DEVICE, ENVIRONMENT, METADATA, RECORD, SWEEP, TRIAL
from autotune.store.trouble import check_revision, check_tables
from autotune.values.device import Device
from autotune.values.errors import DatabaseError
from autotune.values.layer import Problem
from autotune.values.paths import Location
from autotune.values.record import Binary, Checked, Environment, Record, Trial


class Store:
    """An open database; use it as a context manager. Several processes may write to one at once.

    Every method raises DatabaseError, in one line, when the database cannot be read or written.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.name = database.name

    @classmethod
    def open(cls, url: Location | None = None) -> Store:
        """Open `url` (a path, a URL; None: AUTOTUNE_DB or the user's own), creating it when it is not there.

        Raises:
            DatabaseError: it cannot be opened, is not ours, or its schema is not the newest; an older
                one is left as it is for `autotune db upgrade`.
        """
        database = Database(url)
        found = database.revision()
        if found is not None:
            check_revision(database.name, found)
            check_tables(database.name, database.tables(), METADATA.tables)
        else:
            from autotune.store.schema import migrate

            migrate(database)
        return cls(database)

    @classmethod
    def open_existing(cls, url: Location) -> Store:
        """As `open`, and never creates one: it is somebody else's.

        Raises:
            DatabaseError: as `open`, or there is none.
        """
        database = Database(url)
        if database.revision() is None:
            raise DatabaseError(f"database {database.name} is not there, or empty; give one that has records")
        database.close()
        return cls.open(url)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self.database.close()

    def begin_sweep(self, device: Device, environment: Environment, arguments: Mapping[str, Any]) -> int:
        """A new sweep of status `running`; its id. `arguments` is what JSON can hold."""
        with self.database.transaction(write=True) as connection:
            return open_sweep(connection, put_device(connection, device), environment, arguments)

    def add_device(self, device: Device) -> None:
        """Make the device model known, which a sweep does too."""
        with self.database.transaction(write=True) as connection:
            put_device(connection, device)

    def finish_sweep(self, sweep_id: int, status: str) -> None:
        """Close the sweep with `finished`, `interrupted` or `failed`."""
        with self.database.transaction(write=True) as connection:
            close_sweep(connection, sweep_id, status)

    def add_result(
        self,
        sweep_id: int,
        trials: Sequence[Trial],
        record: Record | None,
        binary: Binary | None,
        dropped: Sequence[Record] = (),
        checked: Checked | None = None,
    ) -> None:
        """Store all that a sweep found out about one problem: the whole of it, or nothing on any failure.

        `record` replaces an earlier one of the same device, problem, mode and kernel. `binary` is the
        record's cubin, and replaces one of the same unit that another compiler made. `dropped` are records
        of the sweep's device that are no longer true: they go, their trials stay. `checked` is the record
        that a recheck was about, and its verdict: history keeps both.
        """
        with self.database.transaction(write=True) as connection:
            write_result(connection, sweep_id, trials, record, binary, dropped, checked)

    def records(self, device: Device | None = None, problem: Problem | None = None) -> list[Record]:
        """Current records of the device and problem, or of all, by device and problem, the newest last."""
        query = sa.select(RECORD, DEVICE.c.name, DEVICE.c.arch).select_from(RECORD.join(DEVICE))
        if problem is not None:
            query = query.where(*(RECORD.c[name] == value for name, value in problem_row(problem).items()))
        fields = (RECORD.c[name] for name in PROBLEM_FIELDS)
        order = (DEVICE.c.name, DEVICE.c.arch, *fields, RECORD.c.created_at, RECORD.c.id)
        with self.database.transaction() as connection:
            rows = connection.execute(_only(query, device).order_by(*order)).mappings().all()
            environments = _environments(connection, {row["environment_id"] for row in rows})
            return [
                record_of(
                    row, row["name"], row["arch"], row["source_hash"], environments.get(row["environment_id"])
                )
                for row in rows
            ]

    def trials(self, problem: Problem, device: Device) -> list[Trial]:
        """Every trial of the problem on the device, of all sweeps, the oldest first."""
        return [trial for trial, _ in self.attempts(problem, device)]

    def attempts(self, problem: Problem, device: Device) -> list[tuple[Trial, Environment]]:
        """Every trial of the problem on the device, the oldest first, with the environment of its sweep."""
        query = sa.select(TRIAL, SWEEP.c.environment_id)
        query = _only(query.select_from(TRIAL.join(SWEEP).join(DEVICE).join(ENVIRONMENT)), device)
        query = query.where(*(TRIAL.c[name] == value for name, value in problem_row(problem).items()))
        with self.database.transaction() as connection:
            rows = connection.execute(query.order_by(TRIAL.c.id)).mappings().all()
            found = _environments(connection, {row["environment_id"] for row in rows})
            return [(trial_of(row), found[row["environment_id"]]) for row in rows]

    def devices(self) -> list[Device]:
        """Every device model that a sweep or daemon ran on, by name; `index` is 0."""
        # One that jobs name only has no cores.
        query = sa.select(DEVICE).where(DEVICE.c.cores > 0).order_by(DEVICE.c.name, DEVICE.c.arch)
        with self.database.transaction() as connection:
            rows = connection.execute(query).mappings()
            return [device_of(row) for row in rows]

    def environment(self, device: Device, families: Iterable[str] | None = None) -> Environment | None:
        """The environment of the device's newest record, or of the newest of these families; None without."""
        query = _only(sa.select(ENVIRONMENT).select_from(RECORD.join(DEVICE).join(ENVIRONMENT)), device)
        if families is not None:
            of = (RECORD.c.config.startswith(f"{name}:", autoescape=True) for name in families)
            query = query.where(sa.or_(*of))
        newest = query.order_by(RECORD.c.created_at.desc(), RECORD.c.id.desc()).limit(1)
        with self.database.transaction() as connection:
            row = connection.execute(newest).mappings().one_or_none()
            return None if row is None else environment_of(row)


def _environments(connection: sa.Connection, ids: Collection[int]) -> dict[int, Environment]:
    query = sa.select(ENVIRONMENT).where(ENVIRONMENT.c.id.in_(ids))
    return {row["id"]: environment_of(row) for row in connection.execute(query).mappings()}


def _only(query: sa.Select[Any], device: Device | None) -> sa.Select[Any]:
    if device is None:
        return query
    return query.where(DEVICE.c.name == device.name, DEVICE.c.arch == device.arch)
