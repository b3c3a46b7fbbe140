"""What happened to a record at one time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from autotune.values.change import MedianTime
from autotune.values.layer import Problem

EVENTS = ("sweep", "kept", "replaced", "dropped", "import")
"""What adds to the history of a record: a sweep or a job that picked it, a recheck's verdict, an import."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a record. `event` is `sweep` (it won), a recheck's verdict (`kept`, `replaced`,
    `dropped`) or `import`; `at` is Unix time by the database's clock. Times are None where none was measured.

    `before_us` is the median of the same kernel in the event before, if there is one; `change` is the ratio
    to it when they differ beyond noise, else None.
    """

    problem: Problem
    device: str
    arch: str
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

    @property
    def kernel(self) -> tuple[object, ...]:
        """What has one history: a config of a problem on a device model, of one kernel, timed in one way."""
        return self.device, self.arch, self.problem, self.config, self.mode, self.source_hash

    @property
    def timed(self) -> MedianTime | None:
        """Its time, None where none was measured."""
        if self.median_us is None or self.low_us is None or self.high_us is None:
            return None
        return MedianTime(self.median_us, self.low_us, self.high_us)
