"""The daemon: a loop for each device, and what surrounds them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence

from filelock import Timeout

from autotune.daemon.events import say
from autotune.daemon.health import watched
from autotune.daemon.link import Link, is_final
from autotune.daemon.serving import Serving
from autotune.daemon.settings import Settings
from autotune.daemon.stop import Signals, Stop
from autotune.daemon.systemd import notify, watchdog_s
from autotune.daemon.turn import Turn
from autotune.search.executor import Executor
from autotune.values.device import Device
from autotune.values.errors import DatabaseError, DeviceError
from autotune.values.locks import device_lock
from autotune.values.paths import database_url, shown

_LOOK_S = 1.0
_END_S = 5.0
"""What a loop has left, once its job was dropped, to give it back."""


def serve(
    executors: Sequence[Executor],
    url: str | None,
    settings: Settings,
    port: int | None = None,
    here: bool = True,
) -> None:
    """Work the queue of the database on every executor's device, until SIGTERM, SIGINT or SIGHUP.

    Devices that are `here` have one daemon and are shared with others of this machine; elsewhere that is a
    matter of whoever placed the executors. Health and metrics are at `port` of the loopback, 0 being any free
    one; None is the usual one if it can be had. The database may be away at any time.

    Raises:
        DeviceError: another daemon serves a device.
        DatabaseError: the database's schema or address is wrong.
        AutotuneError: the port cannot be had, or has been asked for and there is no prometheus_client.
    """
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        for executor in executors:
            if here:
                stack.enter_context(_only_daemon_of(executor.device))
            stack.enter_context(executor)
        link = stack.enter_context(contextlib.closing(Link(url)))
        stop = Stop()
        loops = []
        for number, executor in enumerate(executors):
            place = executor.device.torch_name if here else number
            name = f"{socket.gethostname()}:{os.getpid()}:{place}"
            turn = (
                Turn(executor.device, shown(database_url(url))) if here and not settings.allow_busy else None
            )
            loops.append(Serving(name, executor, turn, link, settings, stop))
        address = stack.enter_context(watched(port, loops, link))
        say("start", workers=", ".join(loop.name for loop in loops), http=address)
        try:
            link.once(lambda store: say("database here", name=store.name))
        except DatabaseError as error:
            if is_final(error):
                raise
        for loop in loops:
            loop.start(on_end=signals.wake)
        notify("READY=1")
        _follow(loops, signals, stop, settings)
        say("stop")
    errors = [loop.error for loop in loops if loop.error is not None]
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _only_daemon_of(device: Device) -> Iterator[None]:
    lock = device_lock(device, "daemon")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        where = f"{device.name} ({device.torch_name})"
        raise DeviceError(
            f"another autotune daemon serves {where}; end it or give another --device"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _follow(loops: Sequence[Serving], signals: Signals, stop: Stop, settings: Settings) -> None:
    """Return when every loop has ended; one that ends by more than its device's trouble takes all along."""
    watchdog = watchdog_s()
    look_s = _LOOK_S if watchdog is None else min(_LOOK_S, watchdog / 2)
    dropped_from = float("inf")
    while any(loop.is_alive for loop in loops):
        came = signals.wait(look_s)
        if came and stop.soon.is_set():
            dropped_from = min(dropped_from, time.monotonic())  # a second signal ends the grace
        elif (came or any(map(_is_everyones, loops))) and not stop.soon.is_set():
            say("stopping", signal=came[0] if came else None)
            notify("STOPPING=1", "STATUS=finishing or giving back the running jobs")
            stop.soon.set()
            dropped_from = time.monotonic() + settings.grace_s
        if time.monotonic() >= dropped_from:
            stop.now.set()
            for loop in loops:
                loop.drop()
        if time.monotonic() >= dropped_from + _END_S:
            say("stopping", logging.WARNING, reason="a job is left to the end of its lease")
            return
        notify("WATCHDOG=1", *([] if stop.soon.is_set() else [f"STATUS={_status(loops)}"]))


def _is_everyones(loop: Serving) -> bool:
    return loop.error is not None and not isinstance(loop.error, DeviceError)


def _status(loops: Sequence[Serving]) -> str:
    tallies = [loop.tally for loop in loops]
    return "; ".join(
        f"{each.device}: {each.trouble or each.state}, {each.jobs['done']} done" for each in tallies
    )
