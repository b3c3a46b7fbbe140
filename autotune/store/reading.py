"""Records and binaries for model load: the user's SQLite file and the files that autotune ships.

Standard library only, read-only, and each call opens and closes the file, so threads and forks share nothing.
The file may be damaged, or made to do harm: what is read is found by index and bounded in number and in size,
and a row that does not read costs nothing but itself.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from autotune.store.fields import Row, unix_s
from autotune.store.readonly import Reader, opened
from autotune.store.rows import environment_of, evidence_of, record_of
from autotune.store.text import SAMPLES, RecordFile
from autotune.values.device import Device
from autotune.values.errors import DatabaseError
from autotune.values.layer import BUCKETS, Layer
from autotune.values.paths import SET_VARIABLE, shipped
from autotune.values.record import Environment, Evidence, Record

# A problem has a record for each state of the kernels that it was tuned with; the newest count.
_ROWS = 64
_PULLED_ROWS = 1024
_LARGEST_CUBIN = 64 << 20

_DEVICE = "SELECT id FROM device WHERE name = ? AND arch = ?"
_PROBLEM = f"""
    SELECT id FROM record
    WHERE device_id = ? AND n = ? AND k = ? AND {{scheme}} AND {{served}} AND m = ?
    ORDER BY id DESC LIMIT {_ROWS}
"""
# No model load looks at evidence, so it is neither read nor parsed with the records.
_RECORD = """
    SELECT id, n, k, {columns}, m, config, median_us, low_us, high_us, default_config, default_us,
        source_hash, created_at, {mode} AS mode, NULL AS evidence, environment_id, NULL AS origin_id
    FROM record WHERE id = ?
"""
_PULLED = _RECORD.replace("NULL AS origin_id", "origin_id").replace("FROM record", "FROM pulled")
# A host has pulled a record once for a problem, way of timing and kernel from each origin.
_PULLED_LAYER = f"""
    SELECT id FROM pulled WHERE device_id = ? AND n = ? AND k = ? AND scheme = ? AND mode <> 'hot'
        AND {{in_force}} ORDER BY id DESC LIMIT {_PULLED_ROWS}
"""
_IN_FORCE = "until IS NULL"
_IN_SET = "since <= ? AND (until IS NULL OR until > ?)"
_SET = "SELECT max(id) AS id FROM pulled_set WHERE name = ?"
_ENVIRONMENT = "SELECT driver, compiler, torch, version, sources FROM environment WHERE id = ?"
_ORIGIN = "SELECT name FROM origin WHERE id = ?"
_BINARY = "SELECT sha256, cubin FROM binary WHERE unit_key = ?"
_EVIDENCE = """
    SELECT {evidence} AS evidence, driver, compiler, torch, environment.version AS version, sources
    FROM {table} AS record JOIN device ON device.id = record.device_id
        JOIN environment ON environment.id = record.environment_id
    WHERE device.name = ? AND device.arch = ? AND n = ? AND k = ? AND {scheme} AND m = ? AND config = ?
        AND source_hash = ? AND created_at = ? AND {mode} = ?
"""


class _Schema(NamedTuple):
    """How a revision says what later ones say in other columns."""

    columns: str
    scheme: str
    mode: str
    served: str
    evidence: str

    def query(self, template: str, **more: str) -> str:
        """The query in the words of this schema."""
        return template.format_map({"table": "record", **self._asdict(), **more})


_TODAY = _Schema("scheme", "scheme = ?", "mode", "mode <> 'hot'", "evidence")
# Until 0005 a scheme was three columns, one group of all k had the size k, and the mode was in the evidence.
_BEFORE_0005 = _Schema(
    "group_size, dtype, zero_point",
    "group_size = ? AND dtype = ? AND zero_point = ?",
    "coalesce(CASE WHEN json_valid(evidence) THEN json_extract(evidence, '$.mode') END, 'graph')",
    "true",
    "evidence",
)
_BEFORE_0002 = _BEFORE_0005._replace(mode="'graph'", evidence="NULL")


def user_records(path: Path, device: Device, layer: Layer) -> tuple[list[Record], list[str]]:
    """The layer's records of the device in the SQLite file, oldest first, and what is wrong with bad rows.

    They are those of every bucket; none when there is no such file. What was pulled counts as older than what
    was measured here; it is of the set in force, or that SET_VARIABLE names.

    Raises:
        DatabaseError: the file cannot be read, is not ours, or a newer autotune made its schema.
    """
    found: list[tuple[int, Record]] = []
    pulled: list[tuple[int, Record]] = []
    with opened(path) as reader:
        in_force = _pulled_in_force(reader)
        for (device_id,) in reader.rows(_DEVICE, device.name, device.arch):
            which = (device_id, *_fields(reader, layer))
            if in_force is not None:
                condition, bounds = in_force
                ids = reader.rows(_PULLED_LAYER.format(in_force=condition), *which, *bounds)
                pulled += _records(reader, ids, device.name, device.arch, _PULLED)
            # However many there are of one bucket, they hide none of another.
            query = _schema(reader).query(_PROBLEM)
            ids = [row_id for m in BUCKETS for row_id in reader.rows(query, *which, m)]
            found += _records(reader, ids, device.name, device.arch)
    return [*_by_age(pulled), *_by_age(found)], reader.bad


def pulled_set(path: Path) -> str | None:
    """The name of the pulled set that a model load would read, None where nothing was pulled.

    Raises:
        DatabaseError: the file cannot be read.
    """
    with opened(path) as reader:
        if reader.revision < "0006":
            return None
        rows = reader.rows("SELECT name FROM pulled_set WHERE NOT rolled_back ORDER BY id DESC LIMIT 1")
    return None if not rows else str(rows[0]["name"])


def user_evidence(path: Path, record: Record) -> tuple[Evidence | None, Environment] | None:
    """The record's evidence and environment in the SQLite file, None when the record is not there.

    Raises:
        DatabaseError: as `user_records`, or the evidence does not read.
    """
    problem = record.problem
    with opened(path) as reader:
        schema = _schema(reader)
        moment = unix_s(record.created_at) if schema is _TODAY else record.created_at
        layer = (record.device, record.arch, *_fields(reader, problem.layer))
        which = (*layer, problem.m, str(record.config), record.source_hash, moment, record.mode)
        table = "record" if record.origin is None else "pulled"
        rows = reader.rows(schema.query(_EVIDENCE, table=table), *which)
        found = [pair for row in rows for pair in reader.made(_evidence, row)]
    if reader.bad:
        which_one = f"the evidence of {record.problem}"
        raise DatabaseError(f"database {path}: {which_one} does not read ({reader.bad[0]}); sweep it again")
    return next(iter(found), None)


def user_binary(path: Path, unit_key: str) -> bytes | None:
    """The cubin of the unit in the SQLite file, None when it has none.

    Raises:
        DatabaseError: as `user_records`, or the cubin is not the one that was stored.
    """
    with opened(path, _LARGEST_CUBIN) as reader:
        rows = reader.rows(_BINARY, unit_key)
    for row in rows:
        cubin = row["cubin"]
        intact = isinstance(cubin, bytes) and hashlib.sha256(cubin).hexdigest() == row["sha256"]
        if intact and cubin.startswith(b"\x7fELF"):
            return bytes(cubin)
    if rows or reader.bad:
        raise DatabaseError(f"database {path}: kernel {unit_key[:12]} is damaged; sweep its problem again")
    return None


def shipped_files() -> list[Path]:
    """The record files that the package carries, by name."""
    return sorted(path for path in shipped("db").glob("*.jsonl") if not path.name.endswith(SAMPLES))


def shipped_evidence(record: Record) -> tuple[Evidence | None, Environment] | None:
    """The record's evidence and environment in the files that the package carries, None when none has it.

    Raises:
        DatabaseError: a file cannot be read.
    """
    for path in shipped_files():
        file = RecordFile(path)
        for each in file.records(record.problem.layer, evidence=True):
            if replace(each, evidence=record.evidence) == record:
                return each.evidence, file.environment
    return None


def _evidence(row: Row) -> tuple[Evidence | None, Environment]:
    return None if row["evidence"] is None else evidence_of(row["evidence"]), environment_of(row)


def _records(
    reader: Reader, ids: list[sqlite3.Row], device: str, arch: str, template: str = _RECORD
) -> Iterator[tuple[int, Record]]:
    """The records with these ids and their ids, each read for itself."""
    query = _schema(reader).query(template)
    environments: dict[int, Environment | None] = {}
    origins: dict[int | None, str | None] = {None: None}
    for (row_id,) in ids:
        for row in reader.rows(query, row_id):
            its_environment, its_origin = row["environment_id"], row["origin_id"]
            if its_environment not in environments:
                environments[its_environment] = _environment(reader, its_environment)
            if its_origin not in origins:
                origins[its_origin] = _origin(reader, its_origin)
            whence = (device, arch, row["source_hash"], environments[its_environment], origins[its_origin])
            for record in reader.made(record_of, row, *whence):
                yield row_id, record


def _environment(reader: Reader, row_id: int) -> Environment | None:
    found = (each for row in reader.rows(_ENVIRONMENT, row_id) for each in reader.made(environment_of, row))
    return next(found, None)


def _origin(reader: Reader, row_id: int) -> str:
    return next((str(row["name"]) for row in reader.rows(_ORIGIN, row_id)), "elsewhere")


def _pulled_in_force(reader: Reader) -> tuple[str, tuple[int, ...]] | None:
    """The condition of the pulled rows to read, with its parameters; None where there are none."""
    if reader.revision < "0006" or not reader.rows("SELECT 1 FROM pulled LIMIT 1"):
        return None
    name = os.environ.get(SET_VARIABLE)
    if not name:
        return _IN_FORCE, ()
    rows = reader.rows(_SET, name)
    set_id = rows[0]["id"] if rows else None
    if type(set_id) is not int:
        reader.bad.append(f"{SET_VARIABLE}={name} names no pulled set, so what is in force answers")
        return _IN_FORCE, ()
    return _IN_SET, (set_id, set_id)


def _schema(reader: Reader) -> _Schema:
    if reader.revision >= "0005":
        return _TODAY
    return _BEFORE_0005 if reader.revision >= "0002" else _BEFORE_0002


def _fields(reader: Reader, layer: Layer) -> tuple[str | int, ...]:
    """The layer's columns."""
    if _schema(reader) is _TODAY:
        return layer.n, layer.k, str(layer.scheme)
    return layer.n, layer.k, layer.group_size, layer.dtype, layer.zero_point


def _by_age(found: list[tuple[int, Record]]) -> list[Record]:
    return [record for _, record in sorted(found, key=lambda each: (each[1].created_at, each[0]))]
