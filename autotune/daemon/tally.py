"""What a daemon has done for one device, as metrics and health tell it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

VERDICTS = ("kept", "replaced", "dropped")
OUTCOMES = ("done", "failed", "parked", "lost", "given back")


@dataclass(slots=True)
class LoopState:
    """Written by the device's loop alone; `trouble` is why it does not tune although it may be asked to.
    `rechecks` counts verdicts, and `changes` the records whose time was another one, beyond noise.

    `succeeded_at` is Unix time, for people; nothing here waits by it.
    """

    device: str
    state: str = "idle"
    jobs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    rechecks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    changes: int = 0
    tuning_s: float = 0.0
    succeeded_at: float | None = None
    trouble: str | None = None

    def count(self, outcome: str) -> None:
        """One more job that ended so."""
        self.jobs[outcome] += 1
        if outcome == "done":
            self.succeeded_at = time.time()
