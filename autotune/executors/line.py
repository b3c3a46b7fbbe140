"""Who measures on a device of this machine: one process at a time, in the order in which they came."""

from __future__ import annotations

from filelock import Timeout

from autotune.values.device import Device
from autotune.values.locks import device_lock, say_who_measures


class Line:
    """The processes that want to measure on a device; within one, whoever asks shares its turn.

    The first of those that wait holds a second lock until its turn has come. So whoever has the turn sees
    that it is `wanted`, and who leaves and comes again is behind those that waited.
    """

    def __init__(self, device: Device, database: str = "") -> None:
        self._device, self._database = device, database
        self._turn, self._next = device_lock(device), device_lock(device, "next")
        self._has_turn = self._is_next = False

    @property
    def has_turn(self) -> bool:
        """Whether the turn was taken and not left since."""
        return self._has_turn

    @property
    def wanted(self) -> bool:
        """Whether another process waits."""
        try:
            self._next.acquire(blocking=False)
        except Timeout:
            return True
        self._next.release()
        return False

    def take(self, limit_s: float) -> bool:
        """Whether it is this process's turn; waits for about that long, and keeps a place that it has got."""
        if self._has_turn:
            return True
        try:
            if not self._turn.is_locked and not self._is_next:
                self._next.acquire(timeout=limit_s)
                self._is_next = True
            self._turn.acquire(timeout=limit_s)
        except Timeout:
            return False
        self._has_turn = True
        say_who_measures(self._device, self._database)
        self._leave_place()
        return True

    def leave(self) -> None:
        """Give up the turn, or the place."""
        self._leave_place()
        if self._has_turn:
            self._has_turn = False
            self._turn.release()

    def _leave_place(self) -> None:
        if self._is_next:
            self._is_next = False
            self._next.release()
