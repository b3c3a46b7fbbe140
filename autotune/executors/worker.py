"""The worker: a process that owns a device, tunes what it is sent, and says first what it is about to run.

A kernel that crashes takes this process with it and nothing else. Whoever started it reads from its last
announcement which config that was (autotune.executors.local).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from autotune.bench.budget import Budget
from autotune.search.tune import Cubins, Tuned, tune
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.errors import AutotuneError
from autotune.values.extra import TIMES_ONLY, Extra
from autotune.values.layer import Layer, Problem
from autotune.values.parent import live_no_longer_than_the_parent
from autotune.values.record import Mode

if TYPE_CHECKING:
    from autotune.bench.operands import Operands
    from autotune.bench.peer import Peer
    from autotune.layouts.packed import Layout


@dataclass(frozen=True, slots=True)
class Order:
    """One problem to tune; `cubins` are those that this worker has not been sent before."""

    problem: Problem
    candidates: Sequence[Config]
    cubins: Cubins
    budget_s: float | None
    crashed: Mapping[Config, str]
    mode: Mode
    allow_busy: bool
    extra: Extra = TIMES_ONLY
    parent_holds: bool = False
    """The worker's parent has a context on a GPU too, and waits."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The first message: the device can be used, or `error` says why not."""

    error: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing runs yet: others use the device."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unwatched:
    """What is measured is not checked for all that it should be."""

    reason: str


@dataclass(frozen=True, slots=True)
class Testing:
    """What runs from now on: a config, the peer, or what belongs to neither, as making operands."""

    config: Config | None
    peer: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """What was last announced went wrong; when the device is `lost` to this process, the process ends."""

    reason: str
    lost: bool


def work(pipe: Connection, device: Device, layout: Layout | None = None) -> None:
    """Tune every Order that comes through the pipe on the device, until the pipe is closed.

    `layout` is how the weight lies that the tasks' kernels read, by default that of the device.
    """
    live_no_longer_than_the_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # what a kernel prints is no result
    from autotune.bench.health import trouble

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        error = trouble(device)
        pipe.send(Ready(error))
        worker = _Worker(pipe, device, layout)
        while error is None:
            worker.do(pipe.recv())


class _Worker:
    """Keeps operands, and every cubin that was sent."""

    def __init__(self, pipe: Connection, device: Device, layout: Layout | None) -> None:
        from autotune.bench.kept import KeptOperands

        self._pipe, self._device = pipe, device
        self._cubins: Cubins = {}
        self._kept = KeptOperands(device, layout)
        self._peer: tuple[Layer, Peer | Exception] | None = None

    def do(self, task: Order) -> None:
        """Tune, and send what came of it."""
        from autotune.bench.monitor import monitor_for, unwatched
        from autotune.bench.sharing import wait_until_free

        self._cubins |= task.cubins
        reason = unwatched(self._device)
        if reason is not None:
            self._pipe.send(Unwatched(reason))
        monitor = monitor_for(self._device)
        monitor.parent_holds = task.parent_holds
        if not task.allow_busy:
            wait_until_free(monitor, lambda reason: self._pipe.send(Waiting(reason)))
        self._pipe.send(Testing(None))
        budget = Budget(task.budget_s)
        try:
            operands = self._operands_of(task.problem.layer)
        except Exception as error:
            self._end_if_lost()
            self._pipe.send(Tuned((), None, f"its operands cannot be made: {_line(error)}"))
            return
        try:
            tuned = tune(
                task.problem,
                operands,
                task.candidates,
                self._cubins,
                budget.left_s,
                task.crashed,
                task.mode,
                self._announce,
                (lambda: self._peer_of(operands)) if task.extra.peer else None,
                task.extra.energy,
            )
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            self._end_if_lost()
            self._pipe.send(Broken(f"it raised {_line(error)}", lost=False))
            return
        self._end_if_lost()
        self._pipe.send(tuned)

    def _operands_of(self, layer: Layer) -> Operands:
        if self._peer is not None and self._peer[0] != layer:
            self._peer = None  # the last layer's weight in the other engine's layout goes first
        return self._kept.of(layer)

    def _peer_of(self, operands: Operands) -> Peer:
        """vLLM's kernel for the layer of these operands; why there is none is raised each time."""
        self._announce(None, peer=True)
        if self._peer is None:
            self._peer = operands.layer, _made_peer(operands)
        if isinstance(self._peer[1], Exception):
            raise self._peer[1]  # a local name for it would keep it, and all that its frames hold, for ever
        return self._peer[1]

    def _announce(self, config: Config | None, peer: bool = False) -> None:
        """Say what runs next, unless what ran before has left the device unusable."""
        self._end_if_lost()
        self._pipe.send(Testing(config, peer))

    def _end_if_lost(self) -> None:
        from autotune.bench.health import trouble

        reason = trouble(self._device)
        if reason is not None:
            self._pipe.send(Broken(f"it left the device unusable: {reason}", lost=True))
            os._exit(1)  # past every destructor, which would fail on the device too


def _made_peer(operands: Operands) -> Peer | Exception:
    try:
        from autotune.serving.vllm.peer import vllm_peer

        return vllm_peer(operands)
    except Exception as error:
        return error


def _line(error: BaseException) -> str:
    """The error in one line, with the place of one that nobody raises on purpose."""
    text = f"{type(error).__name__}: {error}".partition("\n")[0]
    if isinstance(error, (AutotuneError, RuntimeError, MemoryError)):
        return text
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({os.path.basename(place.filename)}:{place.lineno})"
