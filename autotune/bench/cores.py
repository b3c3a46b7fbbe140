"""Keeps the threads of CPU kernels on cores of their own while they are timed, where the system allows it."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from autotune import _C

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@contextlib.contextmanager
def own_cores() -> Iterator[None]:
    """The calling thread and each other thread of the CPU kernels on one core, back as before at the end.

    A system without affinities leaves them where they run.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    try:
        if allowed:
            first, *others = _by_core(frozenset(allowed))
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {first})
                _C.cpu_pin(others)
        yield
    finally:
        if allowed:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, allowed)
            _C.cpu_pin([])


@functools.cache
def _by_core(cpus: frozenset[int]) -> list[int]:
    """One CPU of each core, then the second of each: two hardware threads of a core share its units."""
    return sorted(cpus, key=lambda cpu: (_place_in_core(cpu), cpu))


def _place_in_core(cpu: int) -> int:
    try:
        siblings = Path(_TOPOLOGY.format(cpu)).read_text(encoding="ascii")
    except OSError:
        return 0
    before = 0
    for part in siblings.strip().split(","):
        low, _, high = part.partition("-")
        before += max(0, min(cpu, int(high or low) + 1) - int(low))
    return before
