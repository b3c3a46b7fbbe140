"""autotune where no measurement counts as disturbed: for tests beside which others compute.

Run as a program it is the command line. `work` is the entry of such workers.
"""

from __future__ import annotations

import functools
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


def believing(entry: Callable[[Connection, Device], None], pipe: Connection, device: Device) -> None:
    """What a worker runs in place of its entry."""
    believe_all()
    entry(pipe, device)


def believe_all_workers(put: Callable[[object, str, object], None] = setattr) -> None:
    """Believe every time in the workers that this process starts."""
    import undisturbed  # by this name workers find it, also when it is the program

    from autotune.executors.process import WorkerProcess

    start = WorkerProcess.__init__

    def started(self: WorkerProcess, entry: Callable[[Connection, Device], None], device: Device) -> None:
        start(self, functools.partial(undisturbed.believing, entry), device)

    put(WorkerProcess, "__init__", started)


if __name__ == "__main__":
    believe_all()
    believe_all_workers()
    from autotune.cli import main

    # As with -m; but workers have to find this file.
    sys.path.append(sys.path[0])
    sys.path[0] = os.getcwd()
    sys.exit(main())
