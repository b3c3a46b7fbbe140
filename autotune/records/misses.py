"""Notes of what ran without a record of its own, for a daemon to tune. Standard library only.

They are JSON Lines in a file beside the database, appended without a lock. Trouble with the file is no one's
trouble: what cannot be noted stays unsaid.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.store.rows import problem_of, problem_row
from autotune.values.errors import DatabaseError
from autotune.values.layer import BUCKETS, Problem, buckets_for
from autotune.values.paths import Location, database_url, default_database, sqlite_path, why_no_file

if TYPE_CHECKING:
    from autotune.records.lookup import Answer

LIMIT_BYTES = 1 << 20
"""Where no daemon takes the notes away, the file grows to this size and no further."""
MARKS = frozenset(4**power for power in range(32))
"""Numbers of calls at which they are noted."""
REPLAYS = 1000
"""What a call that a CUDA graph captured counts: the graph is made to be replayed, which no one sees."""
UNVERIFIED = "unverified"
"""The source of calls that ran a record's config whose time may not hold any more."""
_MISSED = ("predicted", "default", UNVERIFIED)


@dataclass(frozen=True, slots=True)
class Miss:
    """Calls of a bucket's problem on a device model; `source` is `predicted`, `default` or UNVERIFIED.

    Without a record calls between two powers of two are those of the larger one, which is then to be tuned.
    `source_hash` is that of a job: one hash for the sources of the device's families.
    """

    problem: Problem
    device: str
    arch: str
    source_hash: str
    source: str
    calls: int


class Tally:
    """Counts a layer's calls by the answer that serves them, and notes those that missed.

    They are noted when they are 1, 4, 16 and so on in all, and the rest when the layer's plans are let go or
    the process ends. So a call costs an increment, a process writes some dozen lines in its life, and one
    that is killed has told of a quarter of its calls at least. A CUDA graph that is replayed calls nothing;
    what it captured counts as REPLAYS calls. `missed` says of each answer whether it is a miss.
    """

    def __init__(self, file: Path, arch: str, source_hash: str, answers: Sequence[Answer]) -> None:
        self.calls = [0] * len(answers)
        self.missed = [_noted_as(answer) in _MISSED for answer in answers]
        self._captured = [0] * len(answers)
        self._noted = [0] * len(answers)
        self._file = file
        self._arch, self._source_hash = arch, source_hash
        self._answers = answers

    def note(self, place: int) -> None:
        """Note the calls of the answer in this place that were not noted yet, when they missed."""
        answer, calls = self._answers[place], self.calls[place] + (REPLAYS - 1) * self._captured[place]
        new = calls - self._noted[place]
        if new and self.missed[place]:
            problem = answer.problem
            if answer.unverified is None:
                problem = replace(problem, m=buckets_for(problem.m)[-1])
            which = (problem, answer.device, self._arch, self._source_hash, _noted_as(answer))
            if append(self._file, Miss(*which, new)):
                self._noted[place] = calls

    def capture(self, place: int) -> None:
        """Count the last call of the answer in this place as one that a CUDA graph holds."""
        captured = self._captured[place] = self._captured[place] + 1
        if captured in MARKS:
            self.note(place)

    def note_all(self) -> None:
        """Note what was not noted yet."""
        for place in range(len(self.calls)):
            self.note(place)


def _noted_as(answer: Answer) -> str:
    return answer.source if answer.unverified is None else UNVERIFIED


def miss_file(db: Location | None = None) -> Path:
    """The file of the database in force; of one that is not a file here, that of the user's own database."""
    path = sqlite_path(database_url(db))
    path = None if path is None or why_no_file(path) else path
    return Path(f"{path or default_database()}.misses.jsonl")


def append(file: Path, miss: Miss) -> bool:
    """Add a line in one write, so that processes do not mix theirs; False when that cannot be."""
    which = {"device": miss.device, "arch": miss.arch, "source_hash": miss.source_hash}
    fields = problem_row(miss.problem) | which | {"source": miss.source, "calls": miss.calls}
    line = json.dumps(fields).encode() + b"\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _opened(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            fits = os.fstat(descriptor).st_size + len(line) <= LIMIT_BYTES
            return fits and os.write(descriptor, line) == len(line)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return False


def read(file: Path) -> Iterator[Miss]:
    """The notes of a file, as far as it may grow; a line that is torn or not ours is passed over.

    Raises:
        OSError: the file cannot be read, or is none, or a link.
    """
    with open(_opened(file, os.O_RDONLY), "rb") as lines:
        notes = lines.read(LIMIT_BYTES)
    for line in notes.splitlines():
        miss = _parse(line)
        if miss is not None:
            yield miss


def _opened(file: Path, flags: int) -> int:
    """A descriptor of a regular file.

    Raises:
        OSError: it cannot be opened, or a link, a folder, a pipe or a device is in its place.

    No link is followed, because it may lead to what its maker could not write; and no pipe is waited for.
    """
    descriptor = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file")
    return descriptor


def _parse(line: bytes) -> Miss | None:
    try:
        row: Any = json.loads(line)
        where = row["device"], row["arch"], row["source_hash"]
        miss = Miss(problem_of(row), *where, row["source"], row["calls"])
    except (ValueError, TypeError, KeyError, RecursionError, DatabaseError):
        return None
    sound = all(isinstance(value, str) and value.isprintable() for value in where)
    sound = sound and type(miss.calls) is int and 0 < miss.calls <= max(MARKS)
    return miss if sound and miss.problem.m in BUCKETS and miss.source in _MISSED else None
