"""A worker process on this machine, seen from the process that starts it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import Any

from autotune.executors.worker import Order, Ready
from autotune.search.tune import Cubins
from autotune.values.device import Device

_LOG = logging.getLogger(__name__)
_EXIT_LIMIT_S = 30.0
_FOR_THE_PARENT = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class WorkerProcess:
    """A worker process, the parent's end of its pipe, and the keys of the cubins that it `has`."""

    def __init__(self, entry: Callable[[Connection, Device], None], device: Device) -> None:
        self.has: set[str] = set()
        self._is_ready = False
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=entry, args=(theirs, device), name="autotune-worker", daemon=True
        )
        # What a terminal or a service manager sends to every process must not reach the child, which inherits
        # the mask: it would look like a config that crashes. Starting the tracker resets the mask, so that
        # comes first.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
        try:
            with _no_main():
                self._process.start()
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        weakref.finalize(self, self._process.kill)  # at exit too, where multiprocessing would send a SIGTERM

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._process.pid

    def wait_ready(self, limit_s: float) -> str | None:
        """Wait until it can take tasks; why it cannot, or None.

        Raises:
            TimeoutError, EOFError: as `receive`.
        """
        if self._is_ready:
            return None
        message = self.receive(limit_s)
        assert isinstance(message, Ready)
        self._is_ready = message.error is None
        return message.error

    def send(self, task: Order) -> None:
        """Give it a task; when it has died, `receive` will tell."""
        try:
            self._pipe.send(task)
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self, limit_s: float) -> Any:
        """Its next message.

        Raises:
            TimeoutError: there is none within the limit.
            EOFError: it has died.
        """
        if not wait([self._pipe], limit_s):
            raise TimeoutError
        try:
            return self._pipe.recv()
        except ConnectionResetError:
            raise EOFError from None

    def kill(self) -> None:
        """Have it end, without waiting for it; `receive` will tell."""
        self._process.kill()

    def died(self) -> str:
        """How it ended, once its pipe is closed."""
        self._process.join(_EXIT_LIMIT_S)
        return _ending(self._process.exitcode)

    def end(self) -> None:
        """End it at once; what it has on the device goes with it."""
        self._process.kill()
        self._process.join(_EXIT_LIMIT_S)
        self._pipe.close()
        if self._process.exitcode is None:
            _LOG.warning("worker %s does not end: the driver still holds it", self._process.pid)


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Hide the program's main module: a child would run it again, and with it what started the child.

    What a worker needs is in modules. So a script may tune at its top level, as a notebook does.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _ending(code: int | None) -> str:
    if code is None:
        return "it closed its worker's pipe"
    if code >= 0:
        return f"it ended its worker with exit code {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:
        name = ""
    memory = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
    return f"it crashed its worker: signal {-code}{name}{memory}"


def unsent(cubins: Cubins, has: set[str]) -> Cubins:
    """Those that a receiver which `has` some lacks; it has them from now on."""
    more = {key: cubin for key, cubin in cubins.items() if key not in has}
    has |= more.keys()
    return more
