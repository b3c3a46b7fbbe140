"""Waits for a device that others compute on."""

from __future__ import annotations

import time
from collections.abc import Callable

from autotune.bench.monitor import Monitor

_POLL_S = 0.25
_OWN_TRACE_S = 1.5
"""For how long a device may still report as used what this process did before."""
_IDLE_PERCENT = 5
_TRUST_S = 10.0


class Neighbours:
    """The other processes on a device.

    How much a device is used says nothing of who uses it, so to see whether others compute means to leave it
    idle for a while. Those that were seen to do nothing are not looked at again for `trust_s` seconds, unless
    one joins them: a process that only holds memory would delay every problem of a sweep.
    """

    def __init__(self, monitor: Monitor, trust_s: float = _TRUST_S) -> None:
        self._monitor, self._trust_s = monitor, trust_s
        self._idle: frozenset[int] = frozenset()
        self._trusted_until = 0.0

    def wait_until_idle(self, say: Callable[[str], None]) -> None:
        """Return when nobody else computes on the device; until then `say` in one line who does, repeatedly.

        The calling process must leave the device idle. A device that does not tell how much it is used is not
        waited for.
        """
        quiet_until = time.monotonic() + _OWN_TRACE_S
        while True:
            reading = self._monitor.read()
            others, now = frozenset(reading.others), time.monotonic()
            if others <= self._idle and now < self._trusted_until:
                return
            if not others or (reading.used_percent or 0) <= _IDLE_PERCENT:
                self._idle, self._trusted_until = others, now + self._trust_s
                return
            if now >= quiet_until:
                users = ", ".join(map(str, reading.others))
                say(f"waiting for processes {users}, which compute on the device; --allow-busy does not wait")
            time.sleep(_POLL_S)
