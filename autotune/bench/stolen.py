"""How much CPU time others took while threads of this process were ready to run."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

_TASKS = Path("/proc/self/task")
_LIMIT_S, _POLL_S = 0.02, 0.0002


class CpuWatch:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._before = _waits_ns()
        self._begin = time.perf_counter_ns(), time.process_time_ns(), time.thread_time_ns()

    def stolen(self) -> float:
        """The share of the CPU time that was wanted since and went to others, 0 to 1.

        Linux counts for each thread how long it was ready and did not run. Where nothing does, it is the part
        of the time by the clock in which the calling thread did not run, which must not have slept.
        """
        wall, process, thread = (
            now - begin
            for now, begin in zip(
                (time.perf_counter_ns(), time.process_time_ns(), time.thread_time_ns()),
                self._begin,
                strict=True,
            )
        )
        _let_all_run()
        after = _waits_ns()
        if not after:
            return max(0.0, 1 - thread / wall)
        waited = sum(max(0, each - self._before.get(task, 0)) for task, each in after.items())
        return waited / max(1, waited + process)


def _let_all_run() -> None:
    """Return when no other thread is ready to run: how long one waits is counted when it has run."""
    end = time.monotonic() + _LIMIT_S
    while time.monotonic() < end and any(
        state.rpartition(")")[2].split()[0] == "R"
        for task, state in _read("stat").items()
        if int(task) != threading.get_native_id()
    ):
        time.sleep(_POLL_S)


def _waits_ns() -> dict[str, int]:
    """For each thread how long it was ready and did not run so far; empty where the system does not count."""
    return {task: int(text.split()[1]) for task, text in _read("schedstat").items()}


def _read(name: str) -> dict[str, str]:
    """The file of this name of every thread of this process; none on a system that has no such files."""
    texts = {}
    with contextlib.suppress(OSError):
        for task in _TASKS.iterdir():
            with contextlib.suppress(OSError):  # of a thread that has ended
                texts[task.name] = (task / name).read_text(encoding="ascii", errors="replace")
    return texts
