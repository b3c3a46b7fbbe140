"""A database opened to be looked at: nothing is written, and no query takes long, whatever the file holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from autotune.store.database import Database
from autotune.store.readonly import connected
from autotune.store.tables import METADATA
from autotune.store.trouble import check_revision, check_tables, explain
from autotune.values.errors import DatabaseError
from autotune.values.paths import Location

_LARGEST_VALUE = 1 << 20
_SERVER_MS = 5000


class Viewer(Database):
    """Read-only transactions; a database that is missing or empty has the tables, and no rows.

    A SQLite file is opened anew for each, with the guards of a model load: a locked one is given up after a
    second. On a server each statement has five seconds.
    """

    def __init__(self, url: Location | None = None) -> None:
        super().__init__(url)
        if self.path is None:
            self._engine = self._engine.execution_options(postgresql_readonly=True)
            sa.event.listen(self._engine, "begin", _limit)
        else:
            self._engine = _file_engine(self.path)

    @contextmanager
    def transaction(self, write: bool = False) -> Iterator[sa.Connection]:  # noqa: ARG002
        """One transaction, which sees the database as it was when it began, and cannot write.

        Raises:
            DatabaseError: the database cannot be opened or read, or is locked, in one line.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            if "is locked" in str(error.orig):
                reason = "is locked by another process; load the page again when it is done"
                raise DatabaseError(f"database {self.name} {reason}") from error
            raise explain(self.name, str(error.orig)) from error

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """As `transaction`, once the schema is known to be the newest.

        Raises:
            DatabaseError: as `transaction`; or the database is not ours, or of another schema revision.
        """
        found = self.revision()
        if found is None:
            nothing = sa.create_engine("sqlite://")
            with nothing.begin() as connection:
                METADATA.create_all(connection)
                yield connection
            nothing.dispose()
            return
        check_revision(self.name, found)
        check_tables(self.name, self.tables(), METADATA.tables)
        with self.transaction() as connection:
            yield connection


def _file_engine(path: Path) -> sa.Engine:
    def connect() -> Any:
        connection = connected(path, _LARGEST_VALUE)
        connection.row_factory = None
        # The driver begins no transaction to read; `begin` below does, so that a page is one state.
        connection.isolation_level = None
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _limit(connection: sa.Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {_SERVER_MS}")
