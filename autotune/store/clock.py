"""The database's clock, the same for SQLite and PostgreSQL: Unix seconds with their fraction."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles


class now(sa.sql.functions.FunctionElement[float]):  # noqa: N801, it reads as the SQL function that it is
    """The time at which the statement runs, not the one at which its transaction began."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql(*_: Any, **__: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
