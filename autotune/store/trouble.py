"""What can be wrong with a database, in one line each; standard library only, so that serving shares it."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from autotune.values.errors import DatabaseError
from autotune.values.paths import shipped, why_no_file

BUSY_S = 30

DAMAGED = "restore a copy of it or use another --db"
_OWNERS = "can be changed by its owner only; let that role run autotune db upgrade"
_REASONS = {
    "not a database": "is not a SQLite database; move it away or use another --db",
    "malformed": f"is damaged; {DAMAGED}",
    "is locked": f"stayed locked by another process for {BUSY_S} s; end that process or use another --db",
    "disk is full": "cannot grow: its disk is full; free some space or use another --db",
    "disk I/O": "cannot be read or written, because its disk fails; use another --db",
    "codec can't decode": f"is damaged; {DAMAGED}",
    "Could not decode": f"holds a text that is no UTF-8; {DAMAGED}",
    "too big": f"holds a value that is too big; {DAMAGED}",
    "interrupted": f"takes too long to read; {DAMAGED}",
    "readonly": "cannot be written; check its permissions and its folder's or use another --db",
    "unable to open": "cannot be opened; check its permissions and its folder's or use another --db",
    "permission denied for schema": _OWNERS,
    "must be owner": _OWNERS,
    "permission denied for": "refuses this to your role; let its owner grant what migrations/roles.sql does",
}


def explain(name: str, message: str) -> DatabaseError:
    """The error of database `name` for the message that its driver gave."""
    for words, reason in _REASONS.items():
        if words in message:
            return DatabaseError(f"database {name} {reason}")
    return DatabaseError(f"database {name}: {' '.join(message.split())}")


def is_missing(path: Path) -> bool:
    """Whether there is no such SQLite file, as far as this user may see.

    Raises:
        DatabaseError: there can be no file of that name, or this user may not look, or a folder, a pipe or a
            device is in its place or in that of a file which SQLite keeps beside it, as a pipe for which
            SQLite would wait.
    """
    reason = why_no_file(path)
    if reason is not None:
        raise DatabaseError(f"database {str(path)!r}: {reason}; use another --db")
    for each in (Path(f"{path}{suffix}") for suffix in ("-journal", "-wal", "-shm", "")):
        try:
            mode = _mode(each)
        except OSError as error:
            raise DatabaseError(
                f"database {path} cannot be opened ({error.strerror}); use another --db"
            ) from error
        if mode is not None and not stat.S_ISREG(mode):
            raise DatabaseError(f"database {each} is no file; use another --db")
    return mode is None


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_tables(name: str, found: Collection[str], needed: Iterable[str]) -> None:
    """Raise DatabaseError unless the tables are there; a view in the place of one may have no end."""
    for table in needed:
        if table not in found:
            raise DatabaseError(f"database {name} is damaged: table {table} is missing; {DAMAGED}")


def known_revisions() -> list[str]:
    """Every schema revision that this autotune knows, oldest first: the numbers of its migrations."""
    names = os.listdir(shipped("migrations") / "versions")
    return sorted(name[:4] for name in names if name[0].isdecimal() and name.endswith(".py"))


def check_known(name: str, found: str) -> None:
    """Raise DatabaseError unless the schema of database `name` is at a revision of this autotune."""
    if found not in known_revisions():
        raise DatabaseError(
            f"database {name} has schema revision {str(found)[:20]}, made by a newer autotune; "
            "upgrade autotune or use another --db"
        )


def check_revision(name: str, found: str) -> None:
    """Raise DatabaseError unless the schema of database `name` is at the newest revision."""
    check_known(name, found)
    newest = known_revisions()[-1]
    if found != newest:
        raise DatabaseError(
            f"database {name} has schema revision {found}, older than {newest} of this autotune; "
            f"run: autotune db upgrade --db {name}"
        )
