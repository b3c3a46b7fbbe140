"""Daemons as processes of their own, and jobs for them.

Run as a program it is a daemon whose families, times and worker a test chooses.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import crashing
import undisturbed
from command_line import PROGRAM
from places import ROOT, SUPPORT

from autotune.daemon.events import log_to_stderr
from autotune.daemon.service import serve
from autotune.daemon.settings import Settings
from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.search.environment import current_environment
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.device import cpu_device
from autotune.values.job import Job
from autotune.values.layer import Layer, Problem
from autotune.values.record import sources_digest

LAYER = Layer(n=256, k=256, group_size=64)  # a smaller one takes a worker longer: it has more copies
PROBLEM = Problem(LAYER, 1)
LIMIT_S = 240
SOON = {"beat_s": 0.1, "poll_s": 0.05}
CRASHING = sources_digest({"crashing": "crashing"})


class Daemon:
    """A running daemon; its events are read from stderr, one after the other."""

    def __init__(self, folder: Path, *command: str, env: Mapping[str, str] | None = None) -> None:
        paths = os.pathsep.join((str(ROOT), str(SUPPORT)))
        self.process = subprocess.Popen(
            (sys.executable, *command),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, **(env or {})},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._limit = threading.Timer(LIMIT_S, self.process.kill)

    def __enter__(self) -> Daemon:
        self._limit.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._limit.cancel()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def until(self, *events: str) -> dict[str, Any]:
        """The next event of these names."""
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("{"):
                event = json.loads(line)
                if event["event"] in events:
                    return event
        raise AssertionError(f"no {events} in:\n{''.join(self.lines)}")

    def end(self, number: int | None = None) -> int:
        """Its exit code, once it has got the signal, if any, and ended; `lines` has all it said."""
        if number is not None:
            self.process.send_signal(number)
        self.lines += self.process.stderr.readlines()
        return self.process.wait()

    def signal_all(self, number: int) -> None:
        """Send it to the workers too, as systemd does with KillMode=control-group."""
        os.killpg(self.process.pid, number)

    def stop(self) -> int:
        return self.end(signal.SIGTERM)


def command_line(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Daemon:
    """`autotune daemon` for the CPU, with the real families."""
    arguments = ("--device", "cpu", "--db", "here.db", *arguments)
    return Daemon(folder, *PROGRAM[1:], "daemon", *arguments, env=env)


def special(
    folder: Path,
    acts: tuple[int, ...] | None = None,
    *,
    db: str = "here.db",
    port: int | None = None,
    entries: Sequence[str] = ("work",),
    env: Mapping[str, str] | None = None,
    **settings: Any,
) -> Daemon:
    """A daemon of the crashing family with these acts, or of the real families, with short times.

    `entries` are what the workers run; when they are several, the CPU counts as so many devices elsewhere.
    """
    chosen = {"acts": acts, "db": db, "port": port, "entries": entries, "settings": SOON | settings}
    return Daemon(folder, str(SUPPORT / "daemons.py"), json.dumps(chosen), env=env)


def add(db: Path | str, *problems: Problem, source_hash: str = "") -> None:
    """Queue problems for the CPU and the real families, or those of the hash."""
    device = cpu_device()
    hash_ = source_hash or sources_digest(current_environment(device).sources)
    with Store.open(str(db)) as store:
        Queue(store).add([(each, 1.0) for each in problems or (PROBLEM,)], device.name, device.arch, hash_)


def job(db: Path | str, number: int = 1) -> Job:
    with Store.open(str(db)) as store:
        return next(each for each in Queue(store).jobs() if each.id == number)


def _run(
    acts: list[int] | None, db: str, port: int | None, entries: Sequence[str], settings: Mapping[str, Any]
) -> None:
    if acts is not None:
        crashing.Crashing.acts = tuple(acts)
        registry.families = crashing.families
        if not acts:
            crashing.Crashing.default = lambda *_: None
    undisturbed.believe_all()
    log_to_stderr()
    family = undisturbed if acts is None else crashing
    alone = len(entries) == 1
    executors = [
        LocalExecutor(cpu_device(), entry=getattr(family, entry), allow_busy=not alone) for entry in entries
    ]
    serve(executors, db, Settings(**settings), port, here=alone)


if __name__ == "__main__":
    _run(**json.loads(sys.argv[1]))
