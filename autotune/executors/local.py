"""Tunes in a worker process on this machine, and starts another one when a candidate takes it down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from autotune.bench.monitor import holds_gpu
from autotune.executors.line import Line
from autotune.executors.process import WorkerProcess, unsent
from autotune.executors.worker import Broken, Order, Testing, Unwatched, Waiting, work
from autotune.search.environment import current_environment
from autotune.search.executor import At
from autotune.search.tune import Cubins, Tuned
from autotune.values.config import Config
from autotune.values.device import Device, cuda_devices, find_device, gpu_trouble
from autotune.values.errors import DeviceError
from autotune.values.extra import TIMES_ONLY, Extra
from autotune.values.layer import Problem
from autotune.values.locks import who_measures
from autotune.values.record import DEFAULT_MODE, Environment, Mode, Trial

_LOG = logging.getLogger(__name__)
_START_LIMIT_S = 300.0
_GPU_LIMIT_S = 30.0
_CPU_LIMIT_S = 120.0
_OUTSIDE_LIMIT_S = 120.0
_LOCK_POLL_S = 1.0
_CPU_OPERATIONS_PER_LIMIT = 2.5e8
"""Operations of a problem from which on its limit grows: all rounds of a race take far less per operation."""
_MOST_CRASHES = 10
"""Configs of one family that may crash on one problem before the rest of the family is not tried."""

# A worker ends with the thread that started it, so one that lives as long as this process starts them all.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="starter")


@dataclass(frozen=True, slots=True)
class _Crash:
    """How an attempt at a problem ended: by a config, by the peer, or by none in particular."""

    testing: Testing
    reason: str


class LocalExecutor:
    """Tunes problems on a device of this machine; use it as a context manager.

    A config that does not end within `limit_s` seconds (30 on a GPU; on a CPU 120, and more for a large
    problem) is given up with its worker. `entry` is what the worker runs. Executors of other processes of the
    user and others who compute on the device are waited for, unless `allow_busy`. They are told the name of
    the `database` that it measures for.
    """

    def __init__(
        self,
        device: Device,
        limit_s: float | None = None,
        entry: Callable[[Connection, Device], None] = work,
        allow_busy: bool = False,
        database: str = "",
    ) -> None:
        self._device, self._limit_s, self._entry, self._allow_busy = device, limit_s, entry, allow_busy
        self._line = Line(device, database)
        self._worker: WorkerProcess | None = None
        self._at: At | None = None
        self._cancelled = self._is_told = False
        self._waited_s = 0.0
        self._guard = threading.Lock()  # between whoever cancels and a worker that is about to start

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def device(self) -> Device:
        """The device that it tunes on."""
        return self._device

    @property
    def environment(self) -> Environment:
        """What else its measurements depend on, as of now."""
        return current_environment(self._device)

    @property
    def at(self) -> At | None:
        """What `tune` is at; a config counts as done when the next one begins."""
        return self._at

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id, None when there is none."""
        return None if self._worker is None else self._worker.pid

    def start(self) -> None:
        """Begin to start a worker, when there is none and nobody else measures here; do not wait for it."""
        if self._may_measure(0.0):
            self._start()

    def cancel(self) -> None:
        """End the worker at once, from any thread: `tune` raises, now and until `close`."""
        with self._guard:
            self._cancelled = True
            if self._worker is not None:
                self._worker.kill()

    def close(self) -> None:
        """End the worker at once."""
        self._end_worker()
        self._cancelled = False
        self._line.leave()

    def _start(self) -> None:
        with self._guard:
            if self._cancelled:
                raise DeviceError(f"tuning on {self._device.name} was cancelled")
            if self._worker is None:
                self._worker = _STARTER.submit(WorkerProcess, self._entry, self._device).result()

    def _may_measure(self, limit_s: float) -> bool:
        return self._allow_busy or self._line.take(limit_s)

    def _end_worker(self) -> None:
        with self._guard:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

    def tune(
        self,
        problem: Problem,
        candidates: Sequence[Config],
        cubins: Cubins,
        budget_s: float | None = None,
        mode: Mode = DEFAULT_MODE,
        extra: Extra = TIMES_ONLY,
    ) -> Tuned:
        """Measure the candidates, the first of which is the default config, and choose the winner.

        A config that takes its worker down fails; the others are measured again, by another worker and with
        the whole of `budget_s`, so that a crash does not leave the problem to its default config. A peer that
        does so is left out.

        Raises:
            DeviceError: two workers in a row did not start, or it was cancelled.
        """
        crashed: dict[Config, str] = {}
        blameless, note = 0, ""
        self._waited_s = 0.0
        while True:
            try:
                busy = self._allow_busy
                task = Order(problem, candidates, cubins, budget_s, crashed, mode, busy, extra, holds_gpu())
                ended = self._attempt(task)
            except BaseException:
                self._end_worker()  # a worker amid a problem would answer the next one with this one's result
                raise
            finally:
                self._at = None
            if isinstance(ended, Tuned):
                return replace(ended.noted(note), waited_s=self._waited_s)
            if ended.testing.peer:
                extra = replace(extra, peer=False)
                note = f"the other engine's kernel is not timed: {ended.reason}"
                continue
            config = ended.testing.config
            if config is None:
                blameless += 1
                if blameless == 2:
                    trials = tuple(
                        Trial(problem, config, "failed", error=why, mode=mode)
                        for config, why in crashed.items()
                    )
                    return Tuned(trials, None, f"given up, outside of any config: {ended.reason}")
                continue
            blameless = 0
            _LOG.info("%s of %s: %s", config, problem, ended.reason)
            crashed[config] = ended.reason
            _give_up_family(config.family, candidates, crashed)

    def _attempt(self, task: Order) -> Tuned | _Crash:
        begin: float | None = time.monotonic()
        done, configs = len(task.crashed), len(task.candidates)
        self._at = At(task.problem, done, configs)
        worker = self._ready_worker()
        testing = Testing(None)
        waiting = ""
        worker.send(replace(task, cubins=unsent(task.cubins, worker.has)))
        while True:
            limit_s = self._limit(task.problem)
            if testing.config is None:
                limit_s = max(limit_s, _OUTSIDE_LIMIT_S)
            try:
                message = worker.receive(limit_s)
            except TimeoutError:
                self._end_worker()
                return _Crash(testing, f"it did not end within {limit_s:g} s")
            except EOFError:
                reason = worker.died()
                self._end_worker()
                return _Crash(testing, reason)
            if isinstance(message, Testing):
                if begin is not None:  # the first: until then nothing was measured
                    self._waited_s += time.monotonic() - begin
                    begin = None
                if testing.config is not None:
                    done = done + 1 if message.config is not None else configs  # else the race begins
                testing = message
                self._at = At(task.problem, done, configs)
            elif isinstance(message, Waiting):
                if message.reason != waiting:
                    _LOG.warning(message.reason)
                waiting = message.reason
            elif isinstance(message, Unwatched):
                if not self._is_told:
                    _LOG.warning(message.reason)
                self._is_told = True
            elif isinstance(message, Broken):
                if message.lost:
                    self._end_worker()
                return _Crash(testing, message.reason)
            else:
                assert isinstance(message, Tuned)
                return message

    def _ready_worker(self) -> WorkerProcess:
        """A worker whose device works; a start that fails is tried once more."""
        reason = ""
        for _ in range(2):
            if not self._may_measure(0.0):
                _LOG.warning(
                    "waiting for %s, which measures on %s", who_measures(self._device), self._device.name
                )
            while not self._cancelled and not self._may_measure(_LOCK_POLL_S):
                pass
            self._start()
            assert self._worker is not None
            try:
                reason = self._worker.wait_ready(_START_LIMIT_S) or ""
            except TimeoutError:
                reason = f"it is not ready after {_START_LIMIT_S:g} s"
            except EOFError:
                reason = self._worker.died()
            if not reason:
                return self._worker
            self._end_worker()
        raise DeviceError(f"no worker starts on {self._device.name}: {reason}; see autotune doctor")

    def _limit(self, problem: Problem) -> float:
        if self._limit_s is not None:
            return self._limit_s
        if self._device.kind == "cuda":
            return _GPU_LIMIT_S
        return _CPU_LIMIT_S * max(1.0, problem.operations / _CPU_OPERATIONS_PER_LIMIT)


def local_executors(names: str = "auto", allow_busy: bool = False, database: str = "") -> list[LocalExecutor]:
    """One executor for each device: `auto`, `cpu`, `cuda:N`, several as `cuda:0,cuda:1`, or `all`.

    `all` is every GPU that the kernels run on.

    Raises:
        DeviceError: there is no such device, or it is older than sm_80.
    """
    if names == "all":
        devices = list(_usable_gpus())
        if not devices:
            none = "no usable NVIDIA GPU here" if cuda_devices() else f"no NVIDIA GPU here ({gpu_trouble()})"
            raise DeviceError(f"device 'all': {none}; use --device cpu")
    else:
        devices = [find_device(name.strip()) for name in names.split(",")]
    return [
        LocalExecutor(device, allow_busy=allow_busy, database=database) for device in dict.fromkeys(devices)
    ]


def _usable_gpus() -> Iterator[Device]:
    for gpu in cuda_devices():
        try:
            yield find_device(gpu.torch_name)
        except DeviceError as error:
            _LOG.warning("left out: %s", error)


def _give_up_family(family: str, candidates: Sequence[Config], crashed: dict[Config, str]) -> None:
    """When many configs of a family have crashed, count the rest as failed instead of trying each."""
    if sum(config.family == family for config in crashed) < _MOST_CRASHES:
        return
    for config in candidates:
        if config.family == family:
            crashed.setdefault(config, f"not tried: {_MOST_CRASHES} configs of {family} had crashed")
