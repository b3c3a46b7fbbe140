"""What a process does about the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from multiprocessing import parent_process
from multiprocessing.connection import wait

_PR_SET_PDEATHSIG = 1


def live_no_longer_than_the_parent() -> None:
    """End with the parent, also when it was killed and could say nothing.

    Linux sends the signal even while a kernel holds the interpreter lock for ever; the thread is for other
    systems, and for a parent that ended before the signal was asked for.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
