"""A SQLite file that may be damaged, or made to do harm, opened for reading. Standard library only."""

from __future__ import annotations

import itertools
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from autotune.store.fields import RowError, in_short
from autotune.store.trouble import DAMAGED, check_known, check_tables, explain, is_missing
from autotune.values.errors import DatabaseError

_Value = TypeVar("_Value")

# A model load does not wait for a writer as a sweep does; in WAL mode no reader waits at all.
_BUSY_S = 1.0
# Steps of SQLite's machine for one opening of the file, some tenths of a second; a look-up takes thousands.
_STEPS = 10_000_000
_STEPS_AT_ONCE = 10_000
_LARGEST_VALUE = 1 << 20
_TABLES = ("alembic_version", "binary", "device", "environment", "record")
_KNOWN_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name IN (?, ?, ?, ?, ?)"


class Reader:
    """Reads an opened file; of none, there are no rows. `bad` says what was wrong with rows left out.

    `revision` is that of its schema, which may be an older one.
    """

    def __init__(self, connection: sqlite3.Connection | None = None, revision: str = "") -> None:
        self._connection = connection
        self.revision = revision
        self.bad: list[str] = []

    def rows(self, query: str, *parameters: str | float) -> list[sqlite3.Row]:
        """The query's rows; none where a page or a value that it meets is damaged."""
        if self._connection is None:
            return []
        try:
            return self._connection.execute(query, parameters).fetchall()
        except sqlite3.OperationalError:
            raise  # of the file, not of a row
        except sqlite3.DatabaseError as error:
            self.bad.append(in_short(error))
            return []

    def made(self, make: Callable[..., _Value], *arguments: Any) -> Iterator[_Value]:
        """What `make` makes of a row; nothing when the row does not read."""
        try:
            yield make(*arguments)
        except RowError as error:
            self.bad.append(str(error))


@contextmanager
def opened(path: Path, largest: int = _LARGEST_VALUE) -> Iterator[Reader]:
    """A reader of the file, which may be missing or empty; a value beyond `largest` bytes does not read.

    Raises:
        DatabaseError: the file cannot be read, is not ours, or a newer autotune made its schema.
    """
    if is_missing(path):
        yield Reader()
        return
    try:
        with closing(connected(path, largest)) as connection:
            revision = _revision(path, connection)
            yield Reader() if revision is None else Reader(connection, revision)
    except (sqlite3.Error, UnicodeError) as error:
        if "is locked" in str(error):
            raise DatabaseError(f"database {path} is locked by another process") from error
        raise explain(str(path), str(error)) from error


def _revision(path: Path, connection: sqlite3.Connection) -> str | None:
    """The schema's, None of an empty database; DatabaseError when it is not ours, or of a newer autotune."""
    if connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None:
        return None
    tables = {name for (name,) in connection.execute(_KNOWN_TABLES, _TABLES)}
    if "alembic_version" not in tables:
        raise DatabaseError(f"database {path} belongs to another program; use another --db")
    revisions = connection.execute("SELECT version_num FROM alembic_version LIMIT 2").fetchall()
    if not revisions:
        raise DatabaseError(f"database {path} is damaged: it has no schema revision; {DAMAGED}")
    for (revision,) in revisions:
        check_known(str(path), revision)
    check_tables(str(path), tables, _TABLES)
    return str(revision)


def connected(path: Path, largest: int) -> sqlite3.Connection:
    """A read-only connection to the file, guarded against what may be in it.

    Raises:
        sqlite3.Error: the file cannot be opened or read.
    """
    address = f"file:{quote(os.fsencode(path))}?mode=ro"
    connection = _guarded(address, largest)
    try:
        connection.execute("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        connection.close()
        # A WAL database without a log, in a folder that cannot be written, can only be read as unchanging.
        no_access = any(words in str(error) for words in ("unable to open", "readonly"))
        if not no_access or path.with_name(f"{path.name}-wal").exists():
            raise
        return _guarded(f"{address}&immutable=1", largest)
    return connection


def _guarded(address: str, largest: int) -> sqlite3.Connection:
    """A connection on which no content of a file runs code, takes long or much memory, or fails to decode."""
    connection = sqlite3.connect(address, uri=True, timeout=_BUSY_S)
    connection.row_factory = sqlite3.Row
    connection.text_factory = lambda text: text.decode(errors="replace")
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    steps = itertools.count(0, _STEPS_AT_ONCE)
    connection.set_progress_handler(lambda: next(steps) > _STEPS, _STEPS_AT_ONCE)
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, largest)
    return connection
