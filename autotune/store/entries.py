"""Records as they travel: each with its device model, its environment and, on request, its kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from autotune.store.rows import binary_of, device_of, environment_of, record_of, trial_of
from autotune.store.store import Store
from autotune.store.tables import BINARY, DEVICE, ENVIRONMENT, RECORD, SWEEP, TRIAL
from autotune.values.device import Device
from autotune.values.layer import Layer
from autotune.values.record import Binary, Environment, Record, Trial

# SQLite takes 32,766 parameters in a statement.
_AT_ONCE = 500


class Entry(NamedTuple):
    """A record, the device model and environment that it was measured in, and its kernel if that travels."""

    record: Record
    device: Device
    environment: Environment
    binary: Binary | None = None


class TrialEntry(NamedTuple):
    """A trial with the device model and environment that it was measured in."""

    trial: Trial
    device: Device
    environment: Environment


class Wanted(NamedTuple):
    """Which records are meant: those of the device models of these names, and of these layers; None: all."""

    devices: Collection[str] | None = None
    layers: Collection[Layer] | None = None

    def has(self, entry: Entry | TrialEntry) -> bool:
        """Whether the entry is one of them."""
        problem = entry.record.problem if isinstance(entry, Entry) else entry.trial.problem
        of_device = self.devices is None or entry.device.name in self.devices
        return of_device and (self.layers is None or problem.layer in self.layers)


def entries(store: Store, wanted: Wanted, binaries: bool = False) -> list[Entry]:
    """What the store has of these records, with their kernels if `binaries`.

    Raises:
        DatabaseError: it cannot be read.
    """
    with store.database.transaction() as connection:
        return read_entries(connection, wanted, binaries)


def read_entries(connection: sa.Connection, wanted: Wanted, binaries: bool = False) -> list[Entry]:
    """What `entries` returns, within a transaction."""
    found: list[Entry] = []
    kernels: dict[int, int] = {}
    for row, entry in _rows(connection, sa.select(RECORD), wanted):
        if row["binary_id"] is not None:
            kernels[len(found)] = row["binary_id"]
        found.append(entry)
    if binaries:
        read = dict(_binaries(connection, set(kernels.values())))
        for place, binary_id in kernels.items():
            found[place] = found[place]._replace(binary=read.get(binary_id))
    return found


def outlines(store: Store, wanted: Wanted) -> dict[int, Entry]:
    """The entries by the id of their row, without their evidence, which is most of what is stored.

    Raises:
        DatabaseError: it cannot be read.
    """
    query = sa.select(*(column for column in RECORD.c if column is not RECORD.c.evidence))
    with store.database.transaction() as connection:
        rows = _rows(connection, query.add_columns(sa.null().label("evidence")), wanted)
        return {row["id"]: entry for row, entry in rows}


def entries_by_id(store: Store, ids: Sequence[int]) -> list[Entry]:
    """The entries with these ids, as far as they are there still.

    Raises:
        DatabaseError: it cannot be read.
    """
    found: list[Entry] = []
    with store.database.transaction() as connection:
        for begin in range(0, len(ids), _AT_ONCE):
            query = sa.select(RECORD).where(RECORD.c.id.in_(ids[begin : begin + _AT_ONCE]))
            found += (entry for _, entry in _rows(connection, query, Wanted()))
    return found


def attempts(store: Store, wanted: Wanted) -> Iterator[TrialEntry]:
    """Every trial of the store's that is wanted, the oldest first.

    Raises:
        DatabaseError: it cannot be read.
    """
    query = sa.select(TRIAL, SWEEP.c.device_id, SWEEP.c.environment_id)
    with store.database.transaction() as connection:
        devices, environments = _places(connection)
        whole = query.select_from(TRIAL.join(SWEEP).join(DEVICE).join(ENVIRONMENT))
        rows = connection.execute(whole.order_by(TRIAL.c.id)).mappings()
        for row in rows:
            attempt = TrialEntry(
                trial_of(row), devices[row["device_id"]], environments[row["environment_id"]]
            )
            if wanted.has(attempt):
                yield attempt


def _rows(
    connection: sa.Connection, query: sa.Select[Any], wanted: Wanted
) -> Iterator[tuple[sa.RowMapping, Entry]]:
    """The rows of the query that are wanted, in the order in which they were written, each with its entry."""
    devices, environments = _places(connection)
    whole = query.join(DEVICE).join(ENVIRONMENT)  # none that refers to what is not there
    for row in connection.execute(whole.order_by(RECORD.c.id)).mappings():
        device, environment = devices[row["device_id"]], environments[row["environment_id"]]
        entry = Entry(record_of(row, device.name, device.arch, row["source_hash"]), device, environment)
        if wanted.has(entry):
            yield row, entry


def _places(connection: sa.Connection) -> tuple[dict[int, Device], dict[int, Environment]]:
    """Every device model and environment by id."""
    devices = connection.execute(sa.select(DEVICE)).mappings()
    environments = connection.execute(sa.select(ENVIRONMENT)).mappings()
    return (
        {row["id"]: device_of(row) for row in devices},
        {row["id"]: environment_of(row) for row in environments},
    )


def _binaries(connection: sa.Connection, ids: Iterable[int]) -> Iterator[tuple[int, Binary]]:
    numbers = sorted(ids)
    for begin in range(0, len(numbers), _AT_ONCE):
        query = sa.select(BINARY).where(BINARY.c.id.in_(numbers[begin : begin + _AT_ONCE]))
        for row in connection.execute(query).mappings():
            yield row["id"], binary_of(row)
