"""What systemd wants to be told (sd_notify), without its library."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Send `READY=1`, `STATUS=...` and the like; nothing where systemd did not start this process."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # a name in Linux' abstract namespace
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.settimeout(1.0)  # a reader that is stuck shall not stop the daemon
        told.connect(address)
        told.send("\n".join(lines).encode())


def watchdog_s() -> float | None:
    """Seconds within which systemd wants to hear `WATCHDOG=1` again and again, None when it does not."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not wanted.isdecimal():
        return None
    return int(wanted) / 1e6
