"""How the daemon is, over HTTP: /healthz and /metrics."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autotune.daemon.endpoint import PORT, App, serve_http
from autotune.daemon.events import say
from autotune.daemon.link import Link
from autotune.daemon.serving import Serving
from autotune.daemon.tally import LoopState
from autotune.store.queue import Queue
from autotune.values.errors import AutotuneError
from autotune.values.job import STATES

_SILENT_S = 60.0


@contextlib.contextmanager
def watched(port: int | None, loops: Sequence[Serving], link: Link) -> Iterator[str | None]:
    """Answer while the block runs; the address. Without a port it is the usual one, or none and a note why.

    Raises:
        AutotuneError: the port cannot be had, or there is no prometheus_client.
    """
    with contextlib.ExitStack() as stack:
        address = None
        try:
            metrics = _metrics([loop.tally for loop in loops], link)
            chosen = PORT if port is None else port
            address = stack.enter_context(serve_http(chosen, lambda: health(loops, link), metrics))
        except AutotuneError as error:
            if port is not None:
                raise
            say("no metrics", logging.WARNING, reason=str(error))
        yield address


def health(loops: Sequence[Serving], link: Link) -> tuple[list[str], dict[str, Any]]:
    """What is wrong: a loop that does not run, a database that does not answer; and what each loop does."""
    wrong = [f"{loop.name} does not run" for loop in loops if not loop.is_alive]
    if link.trouble is not None:
        wrong.append(link.trouble)
    elif link.silent_s > _SILENT_S:
        wrong.append(f"the database has not answered for {link.silent_s:.0f} s")
    tallies = [loop.tally for loop in loops]
    states = [{"device": each.device, "state": each.state, "trouble": each.trouble} for each in tallies]
    return wrong, {"devices": states}


def _metrics(tallies: Sequence[LoopState], link: Link) -> App:
    try:
        from autotune.daemon.metrics import metrics_app
    except ModuleNotFoundError as error:
        raise AutotuneError(
            f"health and metrics need the Python module {error.name}; "
            "run: pip install 'autotune-int4[daemon]'"
        ) from None

    def queue() -> Mapping[str, int]:
        found = link.once(lambda store: Queue(store).counts())
        return {state: found.get(state, 0) for state in STATES}

    return metrics_app(tallies, queue)
