"""Verbs that may go on for as long as a host does."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable

import click

from autotune.values.errors import AutotuneError


def repeated(once: Callable[[], None], every_s: float | None) -> None:
    """Call `once`; with a time again and again, that long after, until SIGTERM or Ctrl-C.

    Then trouble is said on stderr, when it is new, and the next turn comes.
    """
    if every_s is None:
        once()
        return
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    said = ""
    while not stop.is_set():
        try:
            once()
            said = ""
        except AutotuneError as error:
            if str(error) != said:
                said = str(error)
                click.echo(f"warning: {said}", err=True)
        # Hosts of a fleet that started together shall not ask together.
        stop.wait(every_s * random.uniform(0.9, 1.0))
