"""A job and a worker: one problem to tune, and the process that tunes for one device."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.values.layer import Problem

STATES = ("queued", "running", "parked", "cancelled", "done")
"""Of a job: waiting for a worker, at one, given up after failures, called off, stored."""
WORKER_STATES = ("idle", "tuning", "waiting", "stopped")


@dataclass(frozen=True, slots=True)
class Job:
    """One problem to tune on a device model with the kernel sources of `source_hash`.

    `attempts` counts claims that did not end well, and the one that runs; `worker` has the job or had it
    last; `reason` is how the last attempt failed. Times are Unix seconds by the database's clock:
    `lease_until` is when a running job may be claimed by others, `not_before` when a queued one may be.
    """

    id: int
    problem: Problem
    device: str
    arch: str
    source_hash: str
    priority: float
    state: str
    attempts: int
    worker: str | None
    lease_until: float | None
    not_before: float
    reason: str | None
    created_at: float

    @property
    def is_recheck(self) -> bool:
        """Whether a record is to be confirmed; such a job has a priority below that of all that tunes."""
        return self.priority < 0


@dataclass(frozen=True, slots=True)
class Worker:
    """Who serves a device, as it last said itself.

    `state` is `idle`, `tuning` (`job_id`), `waiting` (for the device to be free) or `stopped`. The times are
    Unix seconds by the database's clock, which sets them.
    """

    name: str
    host: str
    device: str
    arch: str
    state: str
    job_id: int | None = None
    last_seen: float = 0.0
    started_at: float = 0.0
