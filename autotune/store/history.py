"""What became of records: each time that a sweep picked one, a recheck judged it or an import brought it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from autotune.store.rows import event_of
from autotune.store.store import Store
from autotune.store.tables import ENVIRONMENT, HISTORY, with_device
from autotune.values.change import MedianTime, change
from autotune.values.event import Event
from autotune.values.layer import Layer


def history(store: Store, layers: Iterable[Layer] | None = None) -> list[Event]:
    """The events of the layers, or of all, the oldest first.

    Raises:
        DatabaseError: the store cannot be read.
    """
    query = with_device(HISTORY).add_columns(ENVIRONMENT.c.driver, ENVIRONMENT.c.compiler)
    query = query.join(ENVIRONMENT).order_by(HISTORY.c.id)
    wanted = None if layers is None else set(layers)
    with store.database.transaction() as connection:
        events = [event_of(row) for row in connection.execute(query).mappings()]
    return _compared(event for event in events if wanted is None or event.problem.layer in wanted)


def _compared(events: Iterable[Event]) -> list[Event]:
    """The events, each with what there is to say of the one before of the same kernel."""
    last: dict[tuple[object, ...], MedianTime] = {}
    found: list[Event] = []
    for event in events:
        before, now = last.get(event.kernel), event.timed
        if before is not None:
            event = replace(event, before_us=before.median_us, change=now and change(before, now))
        if now is not None:
            last[event.kernel] = now
        found.append(event)
    return found
