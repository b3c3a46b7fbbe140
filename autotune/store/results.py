"""What was found out about one problem, written within a transaction that somebody else opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from autotune.store.clock import now
from autotune.store.database import INSERT, put
from autotune.store.rows import PROBLEM_FIELDS, problem_row, record_row, trial_row
from autotune.store.tables import BINARY, DEVICE, ENVIRONMENT, HISTORY, RECORD, SWEEP, TRIAL
from autotune.values.device import Device
from autotune.values.layer import Problem
from autotune.values.record import Binary, Checked, Environment, Record, Trial

_RECORD_KEY = ("device_id", *PROBLEM_FIELDS, "mode", "source_hash")


def put_device(connection: sa.Connection, device: Device) -> int:
    """The id of the device model, which is known from now on."""
    row = asdict(device)
    key = {name: row.pop(name) for name in ("name", "arch")}
    del row["index"]
    return put(connection, DEVICE, key, row)


def learn_device(connection: sa.Connection, device: Device) -> int:
    """The id of a device model of which somebody else tells; what is known of it here stays."""
    known = sa.select(DEVICE.c.id).where(DEVICE.c.cores > 0).filter_by(name=device.name, arch=device.arch)
    found: int | None = connection.scalar(known)
    return put_device(connection, device) if found is None else found


def put_environment(connection: sa.Connection, environment: Environment) -> int:
    """The id of the environment."""
    return put(connection, ENVIRONMENT, {"digest": environment.digest}, asdict(environment))


def open_sweep(
    connection: sa.Connection, device_id: int, environment: Environment, arguments: Mapping[str, Any]
) -> int:
    """A new sweep of status `running`; its id."""
    row = {
        "device_id": device_id,
        "environment_id": put_environment(connection, environment),
        "started_at": now(),
        "status": "running",
        "arguments": dict(arguments),
    }
    key: Any = connection.execute(sa.insert(SWEEP).values(row)).inserted_primary_key
    return int(key[0])


def close_sweep(connection: sa.Connection, sweep_id: int, status: str) -> None:
    """The sweep ends with this status."""
    done = sa.update(SWEEP).where(SWEEP.c.id == sweep_id).values(status=status, finished_at=now())
    connection.execute(done)


def write_result(
    connection: sa.Connection,
    sweep_id: int,
    trials: Sequence[Trial],
    record: Record | None,
    binary: Binary | None,
    dropped: Sequence[Record] = (),
    checked: Checked | None = None,
) -> None:
    """Write the trials, the record with its binary, and drop records, as `Store.add_result` says.

    History gets what became of the record that was `checked`, and the record, unless that was the one.
    """
    if trials:
        connection.execute(sa.insert(TRIAL), [{"sweep_id": sweep_id} | trial_row(each) for each in trials])
    sweep = connection.execute(sa.select(SWEEP).filter_by(id=sweep_id)).mappings().one()
    for each in dropped:
        key = {"device_id": sweep["device_id"], "mode": each.mode, "source_hash": each.source_hash}
        gone = key | problem_row(each.problem)
        connection.execute(sa.delete(RECORD).filter_by(**gone))
    measured = {name: sweep[name] for name in ("device_id", "environment_id")}
    rows = []
    if checked is not None:
        rows.append(_history_row(measured, checked.verdict, checked.record, checked.trial_among(trials)))
    if record is not None and (checked is None or checked.verdict != "kept"):
        rows.append(_history_row(measured, "sweep", record, record))
    if rows:
        connection.execute(sa.insert(HISTORY).values(at=now()), rows)
    if record is not None:
        _put_records(connection, sweep_id, measured, [(record, binary)])


def write_records(
    connection: sa.Connection, sweep_id: int, records: Sequence[tuple[Record, Binary | None]], event: str
) -> None:
    """Write records of a sweep, each with its binary, and the event for each, in few statements."""
    sweep = connection.execute(sa.select(SWEEP).filter_by(id=sweep_id)).mappings().one()
    measured = {name: sweep[name] for name in ("device_id", "environment_id")}
    if records:
        rows = [_history_row(measured, event, record, record) for record, _ in records]
        connection.execute(sa.insert(HISTORY).values(at=now()), rows)
        _put_records(connection, sweep_id, measured, records)


def _put_records(
    connection: sa.Connection,
    sweep_id: int,
    measured: dict[str, Any],
    records: Sequence[tuple[Record, Binary | None]],
) -> None:
    """Insert the records, or put each in the place of the one of its device, problem, mode and kernel."""
    binaries = {each.unit_key: each for _, each in records if each is not None}
    binary_ids = {unit_key: _put_binary(connection, each) for unit_key, each in binaries.items()}
    trial_ids = _trial_ids(connection, sweep_id, {record.problem for record, _ in records})
    rows = [
        record_row(record)
        | measured
        | {"trial_id": trial_ids.get((*problem_row(record.problem).values(), str(record.config)))}
        | {"binary_id": None if binary is None else binary_ids[binary.unit_key]}
        for record, binary in records
    ]
    insert = INSERT[connection.dialect.name](RECORD)
    values = {name: insert.excluded[name] for name in rows[0] if name not in _RECORD_KEY}
    connection.execute(insert.on_conflict_do_update(index_elements=_RECORD_KEY, set_=values), rows)


def _trial_ids(
    connection: sa.Connection, sweep_id: int, problems: Collection[Problem]
) -> dict[tuple[Any, ...], int]:
    """The last trial that passed in the sweep, by the columns of its problem and its config."""
    what = [TRIAL.c[name] for name in (*PROBLEM_FIELDS, "config")]
    query = sa.select(*what, sa.func.max(TRIAL.c.id)).filter_by(sweep_id=sweep_id, status="ok")
    if len(problems) == 1:  # as with each result of a sweep, which may have a million trials
        query = query.filter_by(**problem_row(next(iter(problems))))
    return {tuple(row[:-1]): row[-1] for row in connection.execute(query.group_by(*what))}


def _history_row(
    measured: dict[str, Any], event: str, record: Record, timed: Record | Trial | None
) -> dict[str, Any]:
    """What happened to the record, and its time now, if it has one."""
    evidence = timed.evidence if isinstance(timed, Record) else record.evidence
    clock_mhz = timed.clock_mhz if isinstance(timed, Trial) else evidence and evidence.clock_mhz
    row = problem_row(record.problem) | {
        **measured,
        "config": str(record.config),
        "mode": record.mode,
        "source_hash": record.source_hash,
        "event": event,
        "clock_mhz": clock_mhz,
        "temperature_c": evidence and evidence.temperature_c,
    }
    times = {name: getattr(timed, name) if timed else None for name in ("median_us", "low_us", "high_us")}
    return row | times


def _put_binary(connection: sa.Connection, binary: Binary) -> int:
    values = {
        "sha256": binary.sha256,
        "arch": binary.arch,
        "compiler": binary.compiler,
        "cubin": binary.cubin,
    }
    return put(connection, BINARY, {"unit_key": binary.unit_key}, values)
