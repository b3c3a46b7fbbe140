"""Locks between the processes of one user on one machine; the system frees those of a process that ends."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from filelock import BaseFileLock, FileLock

from autotune.values.device import Device, device_id
from autotune.values.paths import lock_folder


def say_who_measures(device: Device, database: str) -> None:
    """Leave word for those that wait, of this process and the database that it measures for, if one is known.

    To be called by who has the lock. Where it cannot be written, they will not know.
    """
    text = f"process {os.getpid()}" + (f", database {database}" if database else "")
    with contextlib.suppress(OSError):
        _word(device).write_text(text, encoding="utf-8", errors="surrogateescape")


def who_measures(device: Device) -> str:
    """`another autotune (process 7, database /home/u/mine.db)`, as the last one that had the lock said."""
    try:
        return f"another autotune ({_word(device).read_text(encoding='utf-8', errors='replace')})"
    except OSError:
        return "another autotune"


def _word(device: Device) -> Path:
    return lock_folder() / f"{device_id(device)}.measure.txt"


def device_lock(device: Device, purpose: str = "measure") -> BaseFileLock:
    """The lock that whoever does this on the device holds meanwhile; one and the same within a process."""
    path = lock_folder() / f"{device_id(device)}.{purpose}.lock"
    return FileLock(path, is_singleton=True, thread_local=False)
