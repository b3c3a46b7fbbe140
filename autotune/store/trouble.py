"""What can be wrong with a database, in one line each; standard library only, so that serving shares it."""

from __future__ import annotations

from pathlib import Path

from autotune.errors import DatabaseError
from autotune.paths import shipped

BUSY_S = 30

_OWNERS = "can be changed by its owner only; let that role run autotune db upgrade"
_REASONS = {
    "not a database": "is not a SQLite database; move it away or use another --db",
    "malformed": "is damaged; restore a copy of it or use another --db",
    "is locked": f"stayed locked by another process for {BUSY_S} s; end that process or use another --db",
    "disk is full": "cannot grow: its disk is full; free some space or use another --db",
    "disk I/O": "is no file, or its disk fails; use another --db",
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
    """Whether there is no such file, as far as this user may see.

    Raises:
        DatabaseError: this user may not look.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError as error:
        raise DatabaseError(
            f"database {path} cannot be opened ({error.strerror}); use another --db"
        ) from error
    return False


def known_revisions() -> list[str]:
    """Every schema revision that this autotune knows, oldest first: the numbers of its migrations."""
    return sorted(path.name[:4] for path in (shipped("migrations") / "versions").glob("[0-9]*.py"))


def check_revision(name: str, found: str) -> None:
    """Raise DatabaseError unless the schema of database `name` is at the newest revision."""
    known = known_revisions()
    if found not in known:
        raise DatabaseError(
            f"database {name} has schema revision {found}, made by a newer autotune; "
            "upgrade autotune or use another --db"
        )
    if found != known[-1]:
        raise DatabaseError(
            f"database {name} has schema revision {found}, older than {known[-1]} of this autotune; "
            f"run: autotune db upgrade --db {name}"
        )
