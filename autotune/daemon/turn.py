"""Whose turn it is on a device of this machine."""

from __future__ import annotations

from filelock import Timeout

from autotune.device import Device
from autotune.locks import device_lock

_IDLE_PERCENT = 5


class Turn:
    """The right to tune on a device: nobody else computes there, and no other autotune measures.

    A process that computes nothing now counts too when it holds the GPU: it is a model server, more often
    than not, and its next request should not meet a tuning.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = device_lock(device)
        self._mine = False

    def take(self, warm: bool) -> str | None:
        """Take it, or look again whether it may be kept; None, or why not.

        `warm` says that this daemon's own worker is on the device, and may have computed just now.
        """
        hindrance = self._hindrance(warm)
        if hindrance is not None or self._mine:
            return hindrance
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return f"another autotune measures on {self._device.name}"
        self._mine = True
        return None

    def leave(self) -> None:
        """Let others have it."""
        if self._mine:
            self._mine = False
            self._lock.release()

    def _hindrance(self, warm: bool) -> str | None:
        if self._device.kind != "cuda":
            return None  # a CPU is always shared
        from autotune.bench.monitor import monitor_for  # imports torch, which takes seconds

        reading = monitor_for(self._device).read()
        others = len(reading.others) - warm  # counted, for in a container the worker goes by another number
        if others > 0:
            return f"{others} other processes hold {self._device.name}; --allow-busy does not wait for them"
        used = reading.used_percent or 0
        if not warm and used > _IDLE_PERCENT:
            return f"{self._device.name} is used, by {used} %; --allow-busy does not wait"
        return None
