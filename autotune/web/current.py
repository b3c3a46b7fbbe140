"""Whether records are of today's kernels, remembered: one page after the other asks the same of thousands."""

from __future__ import annotations

import functools

from autotune.families import registry
from autotune.values.device import Device
from autotune.values.record import Record


@functools.lru_cache(maxsize=50_000)
def is_current(record: Record, device: Device) -> bool:
    """Whether the code of this process makes the record's kernel on the device."""
    return registry.is_current(record, device)
