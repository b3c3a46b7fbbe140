"""How a daemon behaves: what a user may choose, and the times that only tests change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """`budget_s` is tuning time per hour; `once` ends the daemon when nothing can be done now.

    A lease lasts `lease_s` and is renewed every `beat_s`, when the worker also says that it lives. An idle
    worker asks for a job every `poll_s`. A job that runs when the daemon is to stop has `grace_s` to end. A
    device begins at most so many `rechecks` in any hour.
    """

    budget_s: float | None = None
    allow_busy: bool = False
    once: bool = False
    lease_s: float = 60.0
    beat_s: float = 15.0
    poll_s: float = 2.0
    grace_s: float = 10.0
    rechecks: int = 12
