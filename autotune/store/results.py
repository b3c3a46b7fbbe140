"""What was found out about one problem, written within a transaction that somebody else opened."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from autotune.store.database import put
from autotune.store.rows import PROBLEM_FIELDS, problem_row, record_row, trial_row
from autotune.store.tables import BINARY, RECORD, SWEEP, TRIAL
from autotune.values.record import Binary, Record, Trial

_RECORD_KEY = ("device_id", *PROBLEM_FIELDS, "mode", "source_hash")


def write_result(
    connection: sa.Connection,
    sweep_id: int,
    trials: Sequence[Trial],
    record: Record | None,
    binary: Binary | None,
    dropped: Sequence[Record] = (),
) -> None:
    """Write the trials, the record with its binary, and drop records, as `Store.add_result` says."""
    if trials:
        connection.execute(sa.insert(TRIAL), [{"sweep_id": sweep_id} | trial_row(each) for each in trials])
    sweep = connection.execute(sa.select(SWEEP).filter_by(id=sweep_id)).mappings().one()
    for each in dropped:
        key = {"device_id": sweep["device_id"], "mode": each.mode, "source_hash": each.source_hash}
        gone = key | problem_row(each.problem)
        connection.execute(sa.delete(RECORD).filter_by(**gone))
    if record is None:
        return
    row = record_row(record) | {
        "device_id": sweep["device_id"],
        "environment_id": sweep["environment_id"],
        "trial_id": _trial_id(connection, sweep_id, record),
        "binary_id": _put_binary(connection, binary) if binary else None,
    }
    key = {name: row.pop(name) for name in _RECORD_KEY}
    put(connection, RECORD, key, row)


def _trial_id(connection: sa.Connection, sweep_id: int, record: Record) -> int | None:
    query = sa.select(sa.func.max(TRIAL.c.id)).filter_by(
        sweep_id=sweep_id, config=str(record.config), status="ok", **problem_row(record.problem)
    )
    found: int | None = connection.scalar(query)
    return found


def _put_binary(connection: sa.Connection, binary: Binary) -> int:
    values = {
        "sha256": binary.sha256,
        "arch": binary.arch,
        "compiler": binary.compiler,
        "cubin": binary.cubin,
    }
    return put(connection, BINARY, {"unit_key": binary.unit_key}, values)
