"""Records and binaries for model load: the user's SQLite file and the files that autotune ships.

Standard library only, read-only, and each call opens and closes the file, so threads and forks share nothing.
The file may be damaged, or made to do harm: what is read is found by index and bounded in number and in size,
and a row that does not read costs nothing but itself.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from autotune.store.readonly import Reader, opened
from autotune.store.rows import (
    Row,
    environment_of,
    evidence_of,
    problem_row,
    record_of,
)
from autotune.store.text import SAMPLES, RecordFile
from autotune.values.device import Device
from autotune.values.errors import DatabaseError
from autotune.values.layer import BUCKETS, Layer
from autotune.values.paths import shipped
from autotune.values.record import Environment, Evidence, Record

# A problem has a record for each state of the kernels that it was tuned with; the newest count.
_ROWS = 64
_LARGEST_CUBIN = 64 << 20

_DEVICE = "SELECT id FROM device WHERE name = ? AND arch = ?"
_PROBLEM = f"""
    SELECT id FROM record
    WHERE device_id = ? AND n = ? AND k = ? AND group_size = ? AND dtype = ? AND zero_point = ? AND m = ?
    ORDER BY id DESC LIMIT {_ROWS}
"""
# No model load looks at evidence, so it is neither read nor parsed with the records.
_RECORD = """
    SELECT id, n, k, group_size, dtype, zero_point, m, config, median_us, low_us, high_us, default_config,
        default_us, source_hash, created_at, NULL AS evidence FROM record WHERE id = ?
"""
_BINARY = "SELECT sha256, cubin FROM binary WHERE unit_key = ?"
_EVIDENCE = """
    SELECT record.evidence, driver, compiler, torch, version, sources
    FROM record JOIN device ON device.id = record.device_id
        JOIN environment ON environment.id = record.environment_id
    WHERE device.name = ? AND device.arch = ? AND n = ? AND k = ? AND group_size = ? AND dtype = ?
        AND zero_point = ? AND m = ? AND config = ? AND source_hash = ? AND created_at = ?
"""


def user_records(path: Path, device: Device, layer: Layer) -> tuple[list[Record], list[str]]:
    """The layer's records of the device in the SQLite file, oldest first, and what is wrong with bad rows.

    They are those of every bucket; none when there is no such file.

    Raises:
        DatabaseError: the file cannot be read, is not ours, or has another schema revision.
    """
    found: list[tuple[int, Record]] = []
    with opened(path) as reader:
        for (device_id,) in reader.rows(_DEVICE, device.name, device.arch):
            # However many there are of one bucket, they hide none of another.
            ids = [row_id for m in BUCKETS for row_id in reader.rows(_PROBLEM, device_id, *_fields(layer), m)]
            found += _records(reader, ids, device.name, device.arch)
    return _by_age(found), reader.bad


def user_evidence(path: Path, record: Record) -> tuple[Evidence | None, Environment] | None:
    """The record's evidence and environment in the SQLite file, None when the record is not there.

    Raises:
        DatabaseError: as `user_records`, or the evidence does not read.
    """
    problem = problem_row(record.problem).values()
    which = (record.device, record.arch, *problem, str(record.config), record.source_hash, record.created_at)
    with opened(path) as reader:
        rows = reader.rows(_EVIDENCE, *which)
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


def _records(reader: Reader, ids: list[sqlite3.Row], device: str, arch: str) -> Iterator[tuple[int, Record]]:
    """The records with these ids and their ids, each read for itself."""
    for (row_id,) in ids:
        for row in reader.rows(_RECORD, row_id):
            for record in reader.made(record_of, row, device, arch, row["source_hash"]):
                yield row_id, record


def _fields(layer: Layer) -> tuple[str | int, ...]:
    return layer.n, layer.k, layer.group_size, layer.dtype, layer.zero_point


def _by_age(found: list[tuple[int, Record]]) -> list[Record]:
    return [record for _, record in sorted(found, key=lambda each: (each[1].created_at, each[0]))]
