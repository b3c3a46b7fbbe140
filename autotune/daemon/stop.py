"""How a daemon ends: first no new jobs, then, when the grace is over, not the running ones either."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
from types import TracebackType


class Stop:
    """`soon` is set when no job is to be begun, `now` when none is to be finished."""

    def __init__(self) -> None:
        self.soon = threading.Event()
        self.now = threading.Event()


class Signals:
    """SIGTERM, SIGINT and SIGHUP while the block runs; only the main thread may use it.

    A SIGHUP that was ignored, as `nohup` does, stays so. The handlers do nothing: the interpreter writes each
    signal to a socket, whatever thread it interrupts.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()

    def __enter__(self) -> Signals:
        for end in (self._ours, self._theirs):
            end.setblocking(False)
        wanted = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            wanted.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, lambda *_: None) for number in wanted}
        self._fd_before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._ours.close()
        self._theirs.close()

    def wake(self) -> None:
        """Let `wait` return at once, from any thread."""
        with contextlib.suppress(OSError):
            self._theirs.send(b"\0")

    def wait(self, limit_s: float) -> list[str]:
        """Wait for a signal, `wake` or the limit; the names of the signals that came."""
        if not select.select([self._ours], [], [], limit_s)[0]:
            return []
        wanted = {int(number): number.name for number in self._before}
        return [wanted[number] for number in self._ours.recv(64) if number in wanted]
