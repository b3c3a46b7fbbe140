"""What a new autotune made stale: problems whose records are all of kernels that it no longer makes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from autotune.families import registry
from autotune.store.store import Store
from autotune.values.device import Device
from autotune.values.layer import Problem
from autotune.values.record import SERVED, Record


def stale_problems(store: Store, device: Device, families: Collection[str]) -> list[Problem]:
    """The device's problems with records of these families, none of which is of today's kernels.

    Raises:
        DatabaseError: the database cannot be read.
    """
    found: dict[Problem, list[Record]] = defaultdict(list)
    for record in store.records(device):
        if record.config.family in families and record.mode in SERVED:
            found[record.problem].append(record)
    return [
        problem
        for problem, records in found.items()
        if not any(registry.is_current(record, device) for record in reversed(records))
    ]
