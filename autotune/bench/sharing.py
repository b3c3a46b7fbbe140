"""Waits for a device that others compute on."""

from __future__ import annotations

import time
from collections.abc import Callable

from autotune.bench.monitor import Monitor

_POLL_S = 0.25
_OWN_TRACE_S = 1.5
"""For how long a device may still report as used what this process did before."""
_IDLE_PERCENT = 5


def wait_until_free(monitor: Monitor, say: Callable[[str], None]) -> None:
    """Return when nobody else computes on the device; until then `say` in one line who does, again and again.

    The calling process must leave the device idle. Processes that do nothing there, and a device that does
    not tell how much it is used, are not waited for.
    """
    quiet_until = time.monotonic() + _OWN_TRACE_S
    while True:
        reading = monitor.read()
        if not reading.others or (reading.used_percent or 0) <= _IDLE_PERCENT:
            return
        if time.monotonic() >= quiet_until:
            users = ", ".join(map(str, reading.others))
            say(f"waiting for processes {users}, which compute on the device; --allow-busy does not wait")
        time.sleep(_POLL_S)
