"""A trial and a record: what was measured, and the winner with its evidence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from autotune.values.change import MedianTime, change
from autotune.values.config import Config
from autotune.values.layer import Problem

Mode = Literal["model", "graph", "hot", "server"]
"""How calls are timed: a rotation through weight copies in one CUDA graph, each call behind a kernel that
writes its x, as in a model's decode loop; the same, call after call; one copy again and again; or single
calls after random idle times, as requests come."""
MODES: tuple[Mode, ...] = get_args(Mode)
DEFAULT_MODE: Mode = "model"
ConfigJoules = tuple[str, float, float, float]
"""A config as text, the joules of a call, and the ends of their 95 % interval."""
SERVED: tuple[Mode, ...] = ("model", "graph", "server")
"""Modes whose records models run, the preferred one first; `hot` times no call that a model makes."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One config of one problem on one device: verified, then timed.

    `status` is `ok`, `failed` (it did not compile or run), `wrong` (its result was) or `pruned` (dropped
    before the last round). Times are microseconds per call; `low_us` and `high_us` bound the median with
    95 % confidence; `samples_us` has one value per round. `mode` says how it was timed, `clock_mhz` is the
    median multiprocessor clock of its rounds, `deviation` the largest error of its verified outputs as a
    fraction of the tolerance. `source_hash` names the kernel, as `registry.kernel_hash` does; None of trials
    from before it did.
    """

    problem: Problem
    config: Config
    status: str
    median_us: float | None = None
    low_us: float | None = None
    high_us: float | None = None
    samples_us: tuple[float, ...] = ()
    error: str | None = None
    mode: Mode = "graph"
    clock_mhz: int | None = None
    deviation: float | None = None
    source_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a record can be trusted.

    `gain` is the default's time over the winner's, as (median, low, high) of the ratio round by round, 1 when
    the winner is the default. `ties` are the other configs that the race could not tell from the winner;
    `runners_up` the next ones with their median in microseconds. `deviation` is the largest error of the
    verified outputs as a fraction of the tolerance; `floor_us` the roofline's time on the measuring device.
    `clock_mhz`, `temperature_c` and `power_w` are the device's medians over the rounds. `peers` are kernels
    of others that were timed in the same rounds, as ("vllm:MacheteLinearKernel", 12.3) in microseconds; no
    record has one as its config. `candidates` is how many configs were measured, the winner among them;
    `learned_from` are the numbers of tokens whose best configs they were, where not all of the space was.
    `energy` are those of the fastest few whose joules per call were measured, as (config, joules, low, high)
    with the ends of the 95 % interval, the least first.
    """

    rounds: int
    gain: tuple[float, float, float]
    ties: tuple[str, ...] = ()
    runners_up: tuple[tuple[str, float], ...] = ()
    clock_mhz: int | None = None
    deviation: float | None = None
    floor_us: float | None = None
    temperature_c: int | None = None
    power_w: int | None = None
    peers: tuple[tuple[str, float], ...] = ()
    candidates: int | None = None
    learned_from: tuple[int, ...] = ()
    energy: tuple[ConfigJoules, ...] = ()


@dataclass(frozen=True, slots=True)
class Environment:
    """What else a timing depends on: versions, and the hash of each family's source."""

    driver: str
    compiler: str
    torch: str
    version: str
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """The winner of a problem on a device model, against the default config timed in the same rounds.

    `source_hash` names the kernel that was measured, as `registry.kernel_hash` does; `mode` says how it was
    timed; `created_at` is when, in UTC as ISO 8601. Not compared: `environment` is what it was measured in,
    where its reader tells, and `origin` where it was pulled from, None of what was not.
    """

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
    mode: Mode = "graph"
    evidence: Evidence | None = None
    environment: Environment | None = field(default=None, compare=False, repr=False)
    origin: str | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Checked:
    """A stored record that was measured again, and what became of it: `kept`, `replaced` or `dropped`."""

    record: Record
    verdict: str

    def trial_among(self, trials: Iterable[Trial]) -> Trial | None:
        """The trial of its config, None where it was not timed."""
        own = (trial for trial in trials if trial.config == self.record.config)
        return next((trial for trial in own if trial.median_us is not None), None)

    def change_among(self, trials: Iterable[Trial]) -> float | None:
        """The ratio of its time in the trials to that before, when they differ beyond noise."""
        trial, before = self.trial_among(trials), self.record
        if trial is None or trial.median_us is None or trial.low_us is None or trial.high_us is None:
            return None
        now = MedianTime(trial.median_us, trial.low_us, trial.high_us)
        return change(MedianTime(before.median_us, before.low_us, before.high_us), now)


def sources_digest(sources: Mapping[str, str]) -> str:
    """One hash, of 16 hex digits, for the hashes of the families' sources."""
    return hashlib.sha256(json.dumps(sorted(sources.items())).encode()).hexdigest()[:16]


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
