"""autotune where no measurement counts as disturbed: for tests beside which others compute.

Run as a program it is the command line. `work` is the entry of such workers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

from autotune.bench import noise
from autotune.executors import worker
from autotune.values.device import Device


def believe_all(put: Callable[[object, str, float], None] = setattr) -> None:
    """Believe every time in this process."""
    put(noise, "_WIDEST", float("inf"))
    put(noise, "_LEAST_OF_FLOOR", 0.0)
    put(noise, "_CLEAN", 1.0)
    put(noise, "_DISTURBED", 1.0)


def work(pipe: Connection, device: Device) -> None:
    """A worker's entry."""
    believe_all()
    worker.work(pipe, device)


if __name__ in ("__main__", "__mp_main__"):  # the latter in its workers
    believe_all()
if __name__ == "__main__":
    from autotune.cli import main

    sys.path[0] = os.getcwd()  # as with -m
    sys.exit(main())
