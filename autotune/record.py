"""A trial and a record: what was measured, and the winner with its evidence."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from autotune.config import Config
from autotune.layer import Problem


@dataclass(frozen=True, slots=True)
class Trial:
    """One config of one problem on one device: verified, then timed.

    `status` is `ok`, `failed` (it did not compile or run), `wrong` (its result was) or `pruned` (dropped
    before the last round). Times are microseconds per call; `low_us` and `high_us` bound the median with
    95 % confidence; `samples_us` has one value per round.
    """

    problem: Problem
    config: Config
    status: str
    median_us: float | None = None
    low_us: float | None = None
    high_us: float | None = None
    samples_us: tuple[float, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """The winner of a problem on a device model, against the default config timed in the same rounds."""

    problem: Problem
    device: str
    arch: str
    config: Config
    median_us: float
    low_us: float
    high_us: float
    default_config: Config
    default_us: float
    source_hash: str
    created_at: str


@dataclass(frozen=True, slots=True)
class Environment:
    """What else a timing depends on: versions, and the hash of each family's source."""

    driver: str
    compiler: str
    torch: str
    version: str
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Binary:
    """The compiled kernel of a winner: what was measured is byte for byte what runs.

    `unit_key` names the source, the defines and the arch that `compiler` compiled to `cubin`.
    """

    unit_key: str
    arch: str
    compiler: str
    cubin: bytes

    @property
    def sha256(self) -> str:
        """Hash of the cubin, which a reader checks."""
        return hashlib.sha256(self.cubin).hexdigest()
