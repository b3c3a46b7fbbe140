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
from autotune.values.change import Timed, change
from autotune.values.layer import Layer, Problem


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


def history(store: Store, layers: Iterable[Layer] | None = None) -> list[Event]:
    """The events of the layers, or of all, the oldest first.

    Raises:
        DatabaseError: the store cannot be read.
    """
    query = sa.select(HISTORY, DEVICE.c.name.label("device"), ENVIRONMENT.c.driver, ENVIRONMENT.c.compiler)
    query = query.select_from(HISTORY.join(DEVICE).join(ENVIRONMENT)).order_by(HISTORY.c.id)

    wanted = None if layers is None else set(layers)
    names = [name for name in Event.__dataclass_fields__ if name not in ("problem", "before_us", "change")]
    last: dict[tuple[object, ...], Timed] = {}
    events: list[Event] = []
    with store.database.transaction() as connection:
        for row in connection.execute(query).mappings():
            problem = problem_of(row)
            if wanted is not None and problem.layer not in wanted:
                continue
            key = (row["device"], problem, row["config"], row["mode"], row["source_hash"])
            told: dict[str, Any] = {name: row[name] for name in names}
            before, timed = last.get(key), _timed(row)
            if before is not None:
                told |= {"before_us": before.median_us, "change": timed and change(before, timed)}
            events.append(Event(problem, **told))
            if timed is not None:
                last[key] = timed
    return events


def _timed(row: sa.RowMapping) -> Timed | None:
    times = [row[name] for name in Timed._fields]
    return None if None in times else Timed(*times)
