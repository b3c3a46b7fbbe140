"""What became of records: each time that a sweep picked one, a recheck judged it or an import brought it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa

from autotune.store.rows import problem_of
from autotune.store.store import Store
from autotune.store.tables import DEVICE, ENVIRONMENT, HISTORY
from autotune.values.layer import Layer, Problem

LEAST_CHANGE = 0.03
"""Of a time. Medians of one kernel on one H200 differ by less between days, however narrow they are."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a record. `event` is `sweep` (it won), a recheck's verdict (`kept`, `replaced`,
    `dropped`) or `import`; `at` is Unix time by the database's clock. Times are None where none was measured.

    `before_us` is the median of the same kernel in the event before, if there is one; `change` is the ratio
    to it when they differ beyond noise, else None.
    """

    problem: Problem
    device: str
    config: str
    mode: str
    source_hash: str
    event: str
    at: float
    driver: str
    compiler: str
    median_us: float | None
    low_us: float | None
    high_us: float | None
    clock_mhz: int | None
    temperature_c: int | None
    before_us: float | None = None
    change: float | None = None

    @property
    def moment(self) -> str:
        """When, in UTC as ISO 8601."""
        return datetime.fromtimestamp(self.at, timezone.utc).isoformat(timespec="seconds")


def history(store: Store, device: str | None = None, layers: Iterable[Layer] | None = None) -> list[Event]:
    """The events of the device model and layers, or of all, the oldest first.

    Raises:
        DatabaseError: the store cannot be read.
    """
    query = sa.select(HISTORY, DEVICE.c.name.label("device"), ENVIRONMENT.c.driver, ENVIRONMENT.c.compiler)
    query = query.select_from(HISTORY.join(DEVICE).join(ENVIRONMENT)).order_by(HISTORY.c.id)
    if device is not None:
        query = query.where(DEVICE.c.name == device)
    wanted = None if layers is None else set(layers)
    names = [name for name in Event.__dataclass_fields__ if name not in ("problem", "before_us", "change")]
    last: dict[tuple[object, ...], sa.RowMapping] = {}
    events: list[Event] = []
    with store.database.transaction() as connection:
        for row in connection.execute(query).mappings():
            problem = problem_of(row)
            if wanted is not None and problem.layer not in wanted:
                continue
            key = (row["device"], problem, row["config"], row["mode"], row["source_hash"])
            before = last.get(key)
            told: dict[str, Any] = {name: row[name] for name in names}
            if before is not None:
                told |= {"before_us": before["median_us"], "change": change(before, row)}
            events.append(Event(problem, **told))
            if row["median_us"] is not None:
                last[key] = row
    return events


def change(before: sa.RowMapping, now: sa.RowMapping) -> float | None:
    """The ratio of times that differ beyond noise: with disjoint intervals, and by LEAST_CHANGE or more."""
    if now["median_us"] is None or now["low_us"] is None or before["low_us"] is None:
        return None
    ratio = float(now["median_us"] / before["median_us"])
    disjoint = now["low_us"] > before["high_us"] or now["high_us"] < before["low_us"]
    return ratio if disjoint and abs(ratio - 1) >= LEAST_CHANGE else None
