"""A database as another program than the store sees it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    """A connection to a path or URL, in one transaction."""
    address = sa.make_url(url) if "://" in url else sa.URL.create("sqlite", database=url)
    with sa.create_engine(address, poolclass=sa.NullPool).begin() as connection:
        yield connection


def query(url: str, statement: str, **parameters: Any) -> list[dict[str, Any]]:
    """Run the statement; the rows that it returns."""
    with connected(url) as connection:
        found = connection.execute(sa.text(statement), parameters)
        return [dict(row) for row in found.mappings()] if found.returns_rows else []


def rows(url: str, table: str) -> list[dict[str, Any]]:
    """The whole table, by id."""
    return query(url, f'SELECT * FROM "{table}" ORDER BY id')


def change(database: Path, *statements: str) -> None:
    """Run statements that no constraint stops, as if somebody else had written the file."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
        connection.commit()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.executescript(";".join(statements))
        connection.commit()
