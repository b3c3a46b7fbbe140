"""Locks between the processes of one user on one machine; the system frees those of a process that ends."""

from __future__ import annotations

from filelock import BaseFileLock, FileLock

from autotune.device import Device, device_id
from autotune.paths import lock_folder


def device_lock(device: Device, purpose: str = "measure") -> BaseFileLock:
    """The lock that whoever does this on the device holds meanwhile; one and the same within a process."""
    path = lock_folder() / f"{device_id(device)}.{purpose}.lock"
    return FileLock(path, is_singleton=True, thread_local=False)
