"""An opened database: connections, transactions and errors, the same for SQLite and PostgreSQL."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from autotune.store.fields import RowError, in_short
from autotune.store.trouble import BUSY_S, DAMAGED, explain, is_missing
from autotune.values.errors import DatabaseError
from autotune.values.paths import Location, database_url, shown, sqlite_path
from autotune.values.urls import server, why_no_database

# What drivers raise for a text that is no UTF-8 or JSON, a number that is none, or nesting without an end.
_UNREADABLE = (ValueError, TypeError, OverflowError, RecursionError)

_WRITE = "BEGIN IMMEDIATE"

INSERT: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Database:
    """Transactions on one database; `name` is what messages call it (a path, or a URL without secrets).

    SQLite runs in WAL mode, waits 30 s for another writer, checks foreign keys, and takes the write lock
    when a write begins, so that writers queue up and never fail half way.
    """

    def __init__(self, url: Location | None = None) -> None:
        given = database_url(url)
        self.path, self.name = sqlite_path(given), shown(given)
        try:
            self._engine = _server_engine(given) if self.path is None else _sqlite_engine(self.path)
        except ModuleNotFoundError as error:
            raise DatabaseError(
                f"database {self.name} needs the Python module {error.name}; "
                "run: pip install 'autotune-int4[postgres]'"
            ) from error

    @contextmanager
    def transaction(self, write: bool = False) -> Iterator[sa.Connection]:
        """One transaction: all of it is stored, or nothing.

        Raises:
            DatabaseError: the database cannot be opened, read or written, or a row of it does not read, in
                one line.
        """
        try:
            with self._engine.execution_options(write=write).begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            # Who waits for a database that is away does not wait for a file that is damaged.
            damaged = self.path is not None and not isinstance(error, sa.exc.OperationalError)
            raise explain(self.name, str(error.orig)) from (None if damaged else error)
        except RowError as error:
            raise DatabaseError(f"database {self.name}: {error}; {DAMAGED}") from None
        except (sa.exc.SQLAlchemyError, *_UNREADABLE) as error:
            reason = f"holds a value that does not read ({in_short(error)}); {DAMAGED}"
            raise DatabaseError(f"database {self.name} {reason}") from None

    def make_folder(self) -> None:
        """Create the folder of a SQLite file.

        Raises:
            DatabaseError: the folder cannot be created.
        """
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(
                f"database {self.name}: its folder cannot be created ({error.strerror}); use another --db"
            ) from error

    def revision(self) -> str | None:
        """The schema's revision, None when the database is empty or not there; creates nothing.

        Raises:
            DatabaseError: the database holds another program's tables, or cannot be read.
        """
        if self.path is not None and is_missing(self.path):
            return None
        tables = self.tables()
        if "alembic_version" not in tables:
            if tables:
                raise DatabaseError(f"database {self.name} belongs to another program; use another --db")
            return None
        with self.transaction() as connection:
            found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        if found is None and len(tables) > 1:
            raise DatabaseError(f"database {self.name} is damaged: it has no schema revision; {DAMAGED}")
        return found

    def tables(self) -> list[str]:
        """The names of the tables.

        Raises:
            DatabaseError: the database cannot be read.
        """
        with self.transaction() as connection:
            return sa.inspect(connection).get_table_names()

    def check_pages(self) -> None:
        """Read every page of a SQLite file; a server looks after its own.

        Raises:
            DatabaseError: the file is damaged.
        """
        if self.path is None:
            return
        with self.transaction() as connection:
            found = connection.scalar(sa.text("PRAGMA quick_check(1)"))
        if found != "ok":
            raise DatabaseError(
                f"database {self.name} is damaged ({' '.join(str(found).split())}); {DAMAGED}"
            )

    def shrink(self) -> None:
        """Give back the free pages of a SQLite file; a server looks after its own.

        Raises:
            DatabaseError: another process keeps the file locked, or its disk has no room for a copy.
        """
        if self.path is None:
            return
        connection = self._engine.raw_connection()
        try:
            connection.cursor().execute("VACUUM")
        except sqlite3.Error as error:
            raise explain(self.name, str(error)) from error
        finally:
            connection.close()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def put(connection: sa.Connection, table: sa.Table, key: dict[str, Any], values: dict[str, Any]) -> int:
    """Insert the row, or update the one that has the same unique key; the row's id."""
    insert = INSERT[connection.dialect.name](table).values(key | values)
    stored = insert.on_conflict_do_update(index_elements=list(key), set_=values).returning(table.c.id)
    found: int = connection.execute(stored).scalar_one()
    return found


def _server_engine(url: str) -> sa.Engine:
    reason = why_no_database(url)
    try:
        if reason is None:
            return sa.create_engine(sa.URL.create("postgresql+psycopg", **server(url)))
    except sa.exc.ArgumentError:
        reason = "its parameters do not read"
    raise DatabaseError(
        f"database {shown(url)} cannot be used: {reason}; "
        "give a path, sqlite:///path or postgresql://user@host/name"
    )


def _sqlite_engine(path: Path) -> sa.Engine:
    address = sa.URL.create("sqlite", database=str(path))
    engine = sa.create_engine(address, connect_args={"timeout": BUSY_S})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        # The driver's own transactions begin too late to queue writers; `begin` below starts them.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        # While another process makes the file a WAL one, SQLite refuses at once and does not wait.
        _when_unlocked(connection, "PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get("write"):
            connection.exec_driver_sql("BEGIN")
            return
        try:
            _when_unlocked(connection.connection.driver_connection, _WRITE)
        except sqlite3.Error as error:
            raise sa.exc.DBAPIError.instance(_WRITE, None, error, sqlite3.Error) from error

    return engine


def _when_unlocked(driver: Any, statement: str) -> None:
    """Run the statement as soon as no other process keeps the file locked.

    SQLite's own waits grow to 0.1 s, so whoever has waited longest looks least often. Equal waits as short as
    a transaction are fair.
    """
    end = time.monotonic() + BUSY_S
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                driver.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if "is locked" not in str(error) or time.monotonic() >= end:
                    raise
            time.sleep(random.uniform(0.5e-3, 2e-3))
    finally:
        driver.execute(f"PRAGMA busy_timeout={BUSY_S * 1000}")
