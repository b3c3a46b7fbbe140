"""The columns of a page's tables, by which a URL can sort them: `sort=trials.1.down`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.web.query import Query


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; numbers stand at its right, and a chart is nothing to sort by."""

    title: str
    is_number: bool = False
    is_chart: bool = False


Tables = Mapping[str, Sequence[Column]]
"""Every table that a page may have, by name."""


def columns(*titles: str) -> tuple[Column, ...]:
    """Columns with these titles; of one with numbers it begins with #, of a chart with ~."""
    return tuple(Column(title.lstrip("#~"), title[0] == "#", title[0] == "~") for title in titles)


def check_order(query: Query, tables: Tables) -> None:
    """Raise NoPage unless the URL sorts by a column that one of the page's tables has, or by none."""
    if not query.one("sort"):
        return
    known: dict[str, str] = {}
    for name, its in tables.items():
        for place, column in enumerate(its):
            if not column.is_chart:
                known[f"{name}.{place}.up"] = f"{name} by {column.title}"
                known[f"{name}.{place}.down"] = f"{name} by {column.title}, from the end"
    query.choice("sort", known)
