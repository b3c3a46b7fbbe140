"""Whose turn it is on a device of this machine."""

from __future__ import annotations

from autotune.bench.monitor import monitor_for
from autotune.executors.line import Line
from autotune.values.counts import counted
from autotune.values.device import Device
from autotune.values.locks import who_measures

_IDLE_PERCENT = 5


class Turn:
    """The right to tune on a device: nobody else computes there, and no other autotune measures or waits.

    A process that computes nothing now counts too when it holds the GPU: it is a model server, more often
    than not, and its next request should not meet a tuning.
    """

    def __init__(self, device: Device, database: str = "") -> None:
        self._device, self._line = device, Line(device, database)

    def take(self, warm: bool) -> str | None:
        """Take the turn, or look again whether it may be kept for one more job; None, or why not.

        `warm` says that this daemon's own worker is on the device, and may have computed just now.
        """
        hindrance = self._hindrance(warm)
        if hindrance is not None:
            if not self._line.has_turn:
                self._line.leave()  # nobody is to wait behind who cannot begin
        elif self._line.has_turn and self._line.wanted:
            hindrance = f"another autotune wants to measure on {self._device.name}"
        elif not self._line.take(0.0):
            hindrance = f"{who_measures(self._device)} measures on {self._device.name}"
        return hindrance

    def pause(self) -> None:
        """Let others have the device; a place in line is kept."""
        if self._line.has_turn:
            self._line.leave()

    def end(self) -> None:
        """Wait no longer for the device."""
        self._line.leave()

    def _hindrance(self, warm: bool) -> str | None:
        if self._device.kind != "cuda":
            return None  # a CPU is always shared
        reading = monitor_for(self._device).read()
        others = len(reading.others) - warm  # counted, for in a container the worker goes by another number
        if others > 0:
            holders = counted(others, "other process")
            return f"{self._device.name} is held by {holders}; --allow-busy does not wait"
        used = reading.used_percent or 0
        if not warm and used > _IDLE_PERCENT:
            return f"{self._device.name} is used, by {used} %; --allow-busy does not wait"
        return None
