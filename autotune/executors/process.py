"""A worker process on this machine, seen from the process that starts it."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from autotune.executors.worker import Ready
from autotune.search.tune import Cubins
from autotune.values.device import Device

_LOG = logging.getLogger(__name__)
_EXIT_LIMIT_S = 30.0
_FOR_THE_PARENT = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
# What multiprocessing starts imports the program's main module first: a script that tunes at its top level
# would tune again in its worker.
_START = """
import sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
sys.path[:] = pipe.recv()
entry, device = pipe.recv()
entry(pipe, device)
"""


class WorkerProcess:
    """A worker process, the parent's end of its pipe, and the keys of the cubins that it `has`."""

    def __init__(self, entry: Callable[[Connection, Device], None], device: Device) -> None:
        self.has: set[str] = set()
        self._is_ready = False
        self._pipe, theirs = Pipe()
        # What a terminal or a service manager sends to every process must not reach the child, which inherits
        # the mask: it would look like a config that crashes.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
        try:
            self._process = subprocess.Popen(
                (sys.executable, "-c", _START, str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._end = weakref.finalize(self, _end, self._process)  # at exit too
        self.send(sys.path)
        self.send((entry, device))

    @property
    def pid(self) -> int:
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

    def send(self, task: Any) -> None:
        """Give it an Order; when it has died, `receive` will tell."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send(task)

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
        return _ending(_exit_code(self._process))

    def end(self) -> None:
        """End it at once; what it has on the device goes with it."""
        self._end()
        self._pipe.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    if _exit_code(process) is None:
        _LOG.warning("worker %s does not end: the driver still holds it", process.pid)


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Negative where a signal has ended it; None where it does not end in time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_EXIT_LIMIT_S)
    return process.returncode


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
