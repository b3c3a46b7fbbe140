"""Records and binaries for model load: the user's SQLite file and the files that autotune ships.

Standard library only, read-only, and each call opens and closes the file, so threads and forks share nothing.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from autotune.errors import DatabaseError
from autotune.paths import shipped
from autotune.record import Environment, Evidence, Record
from autotune.store.exchange import SAMPLES, read_text
from autotune.store.rows import environment_of, evidence_of, problem_row, record_of
from autotune.store.trouble import check_revision, explain, is_missing

# A model load does not wait for a writer as a sweep does; in WAL mode no reader waits at all.
_BUSY_S = 1.0

# No model load looks at evidence, so it is neither read nor parsed with the thousands of records.
_RECORDS = """
    SELECT device.name AS device, n, k, group_size, dtype, zero_point, m, config, median_us, low_us, high_us,
        default_config, default_us, source_hash, created_at, NULL AS evidence
    FROM record JOIN device ON device.id = record.device_id
    WHERE device.arch = ? ORDER BY record.created_at, record.id
"""
_EVIDENCE = """
    SELECT record.evidence, driver, compiler, torch, version, sources
    FROM record JOIN device ON device.id = record.device_id
        JOIN environment ON environment.id = record.environment_id
    WHERE device.name = ? AND device.arch = ? AND n = ? AND k = ? AND group_size = ? AND dtype = ?
        AND zero_point = ? AND m = ? AND config = ? AND source_hash = ? AND created_at = ?
"""


def user_records(path: Path, arch: str) -> list[Record]:
    """Every record of the arch in the SQLite file, the oldest first; none when there is no such file.

    Raises:
        DatabaseError: the file cannot be read, is not ours, or has another schema revision.
    """
    return [record_of(row, row["device"], arch, row["source_hash"]) for row in _rows(path, _RECORDS, arch)]


def user_evidence(path: Path, record: Record) -> tuple[Evidence | None, Environment] | None:
    """The record's evidence and environment in the SQLite file, None when the record is not there.

    Raises:
        DatabaseError: as `user_records`, or the evidence does not read.
    """
    problem = problem_row(record.problem).values()
    which = (record.device, record.arch, *problem, str(record.config), record.source_hash, record.created_at)
    for row in _rows(path, _EVIDENCE, *which):
        try:
            evidence = None if row["evidence"] is None else evidence_of(row["evidence"])
            return evidence, environment_of(row)
        except (KeyError, TypeError, ValueError) as error:
            raise DatabaseError(
                f"database {path}: the evidence of {record.problem} does not read ({error!r}); sweep it again"
            ) from error
    return None


def user_binary(path: Path, unit_key: str) -> bytes | None:
    """The cubin of the unit in the SQLite file, None when it has none.

    Raises:
        DatabaseError: as `user_records`, or the cubin is not the one that was stored.
    """
    for row in _rows(path, "SELECT sha256, cubin FROM binary WHERE unit_key = ?", unit_key):
        cubin = bytes(row["cubin"])
        if hashlib.sha256(cubin).hexdigest() != row["sha256"]:
            raise DatabaseError(
                f"database {path}: kernel {unit_key[:12]} is damaged; sweep its problem again"
            )
        return cubin
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
        environment, records = read_text(path, record.arch)
        if record in records:
            return record.evidence, environment
    return None


def _rows(path: Path, query: str, *parameters: str | int) -> list[sqlite3.Row]:
    """The query's rows; none when the file is missing or empty."""
    if is_missing(path):
        return []
    try:
        with closing(_open(path)) as connection:
            connection.row_factory = sqlite3.Row
            tables = {row["name"] for row in connection.execute("SELECT name FROM sqlite_master")}
            if not tables:
                return []
            if "alembic_version" not in tables:
                raise DatabaseError(f"database {path} belongs to another program; use another --db")
            for row in connection.execute("SELECT version_num FROM alembic_version"):
                check_revision(str(path), row["version_num"])
            return connection.execute(query, parameters).fetchall()
    except sqlite3.Error as error:
        if "is locked" in str(error):
            raise DatabaseError(f"database {path} is locked by another process") from error
        raise explain(str(path), str(error)) from error


def _open(path: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(path))}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=_BUSY_S)
    try:
        connection.execute("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        connection.close()
        # A WAL database without a log, in a folder that cannot be written, can only be read as unchanging.
        no_access = any(words in str(error) for words in ("unable to open", "readonly"))
        if not no_access or path.with_name(f"{path.name}-wal").exists():
            raise
        return sqlite3.connect(f"{address}&immutable=1", uri=True)
    return connection
