"""Timers: each gives samples of the mean microseconds per call.

Modes: `graph` rotates over weight copies in one CUDA graph; `model` has a kernel that writes x ahead of each
call, whose time is taken away again; `hot` repeats one copy; `server` leaves the device idle for a random
while before every call, as requests do. A CPU has no graphs: there `graph` and `model` are the same rotation
by calls.

`model` is what a decoding model is like: a norm, an activation or attention stands between its linears.
Kernels that follow each other directly overlap, and their blocks meet others of their own kind. On an H200
the winners of such a race made twelve compiled blocks of a Llama-7B 2 % (batch 1) and 3 % (batch 8) slower
than those of `model`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from autotune.bench.cores import own_cores
from autotune.bench.noise import is_clean, is_disturbed
from autotune.bench.operands import Activation, Operands
from autotune.bench.stolen import CpuWatch
from autotune.families.protocol import Plan
from autotune.families.workspace import workspace
from autotune.values.errors import LaunchError
from autotune.values.record import DEFAULT_MODE, Mode

_HOST_SAMPLE_US = 2000.0
_CALIBRATIONS = 3
_RETRY_S, _GIVE_WAY_S = 0.06, 0.002
_SERVER_CALLS = 8
_FEEDS, _FEWEST_FEEDS, _FEED_BYTES, _FEED_ROUNDS = 32, 4, 1 << 28, 9
_SERVER_IDLE_S = 1e-3
# Long enough that the events and the call behind it are enqueued before it ends.
_LEAD_CYCLES = 40_000
# The same for the graph of a few calls that take long.
_SPIN_CYCLES, _FEW_CALLS, _LONG_US = 100_000, 32, 1000.0


class Timed(Protocol):
    """What can be sampled."""

    def lead(self) -> None:
        """Enqueue what nobody samples, on which a GPU is busy while the host gets ahead."""

    def start(self) -> None:
        """Enqueue one rotation through the weight copies, where calls can be enqueued."""

    def sample_us(self) -> float:
        """Microseconds per call, once what was started has ended."""


class Timer(Timed, Protocol):
    """One plan made ready for timing."""

    def disturbed(self) -> bool:
        """Whether others took CPU time from most of the samples."""


class GraphTimer:
    """A CUDA graph of one call per weight copy, between events.

    With `feed_us` a kernel writes x ahead of each call, and so much is taken from its time.
    """

    def __init__(
        self,
        plan: Plan,
        copies: Sequence[Any],
        activations: Sequence[Activation],
        feed_us: float | None = None,
    ) -> None:
        self.calls, self._feed_us = len(copies), feed_us or 0.0
        # The workspace is made before the capture, so that the graph holds kernels and nothing else.
        scratch = _workspace(plan, activations)
        _run(plan, copies[0], activations[0], scratch)

        def run_all() -> None:
            for copy, activation in zip(copies, itertools.cycle(activations), strict=False):
                if feed_us is not None:
                    _feed(activation)
                _run(plan, copy, activation, scratch)

        try:
            self._graph = _Graph(run_all, activations[0].x.device)
        except RuntimeError as error:
            # torch's generator goes on as in a capture until one succeeds, and draws nothing outside of one.
            _Graph(lambda: _feed(activations[0]), activations[0].x.device)
            cause = str(error.__context__ or error).partition("\n")[0]
            raise LaunchError(
                f"it cannot be captured in a CUDA graph ({cause}); --mode server times single calls"
            ) from error
        self._alive = (copies, activations, scratch)  # what the graph reads and writes

    def lead(self) -> None:
        if self.calls <= _FEW_CALLS and self._graph.latest_us > _LONG_US:
            torch.cuda._sleep(_SPIN_CYCLES)
        else:
            self._graph.lead()

    def start(self) -> None:
        self._graph.start()

    def sample_us(self) -> float:
        return self._graph.sample_us() / self.calls - self._feed_us

    def disturbed(self) -> bool:
        return False


class _Graph:
    """What was enqueued by some work, between events."""

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.latest_us = 0.0
        pool = torch.cuda.graph_pool_handle()
        # Not torch.cuda.graph, which collects garbage and empties torch's cache for every capture.
        with torch.cuda.stream(_capture_stream(device)):
            self._graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                self._end_capture(device, pool)

    def _end_capture(self, device: torch.device, pool: tuple[int, int]) -> None:
        try:
            self._graph.capture_end()
        except RuntimeError:
            # Torch 2.11 allocates on as in the capture: it never frees what another stream has used too, and
            # ends the process with the next memory pool. Newer ones have left the pool by now, and say so.
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(device.index, pool)
                torch._C._cuda_releasePool(device.index, pool)
            raise

    def lead(self) -> None:
        self._graph.replay()

    def start(self) -> None:
        self._begin.record()
        self._graph.replay()
        self._end.record()

    def sample_us(self) -> float:
        self._end.synchronize()
        self.latest_us = float(self._begin.elapsed_time(self._end)) * 1e3
        return self.latest_us


def _feed(activation: Activation) -> None:
    """Write x anew, as it was."""
    torch.mul(activation.x, 1, out=activation.x)


def _feed_us(activations: Sequence[Activation]) -> float:
    """Microseconds of such a kernel where another follows."""
    x = activations[0].x
    count = max(_FEWEST_FEEDS, min(_FEEDS, _FEED_BYTES // x.nbytes))

    def feed_all() -> None:
        for activation in itertools.islice(itertools.cycle(activations), count):
            _feed(activation)

    feed_all()
    graph = _Graph(feed_all, x.device)
    samples = [time_round([graph])[0] for _ in range(_FEED_ROUNDS)]
    return statistics.median(samples) / count


def _workspace(plan: Plan, activations: Sequence[Activation]) -> torch.Tensor | None:
    x = activations[0].x
    return workspace(x.device, plan.workspace_bytes(len(x)))


def _run(plan: Plan, weight: Any, activation: Activation, scratch: torch.Tensor | None) -> None:
    plan.run(activation.x, weight, None, activation.out, scratch)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class ServerTimer:
    """Single calls on rotating weight copies, each after a random idle time."""

    def __init__(self, plan: Plan, rotation: Iterator[Any], activations: Sequence[Activation]) -> None:
        self._plan, self._rotation, self._activations = plan, rotation, itertools.cycle(activations)
        self._device = activations[0].x.device
        self._scratch = _workspace(plan, activations)
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._idle = random.Random(0)
        self._call()

    def lead(self) -> None:
        """The device must be idle before each call, so nothing is enqueued ahead."""

    def start(self) -> None:
        """Nor here."""

    def sample_us(self) -> float:
        samples = []
        for _ in range(_SERVER_CALLS):
            torch.cuda.synchronize(self._device)
            time.sleep(self._idle.expovariate(1 / _SERVER_IDLE_S))
            samples.append(self._call())
        return sum(samples) / len(samples)

    def disturbed(self) -> bool:
        return False

    def _call(self) -> float:
        # A short spin keeps the host's launch latency out of the time between the events.
        torch.cuda._sleep(_LEAD_CYCLES)
        self._begin.record()
        _run(self._plan, next(self._rotation), next(self._activations), self._scratch)
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) * 1e3


class HostTimer:
    """Calls by the host's clock, on weights from `rotation`, each sample after an idle time of `idle_s`.

    A sample during which others took CPU time is taken again, for a while; the least disturbed one counts.
    """

    def __init__(
        self,
        plan: Plan,
        rotation: Iterator[Any],
        activations: Sequence[Activation],
        idle_s: float = 0.0,
    ) -> None:
        self._plan, self._rotation, self._activations = plan, rotation, itertools.cycle(activations)
        self._scratch = _workspace(plan, activations)
        self._idle, self._idle_s = random.Random(0), idle_s
        self._stolen: list[float] = []
        self._calls = 1
        if not idle_s:
            for _ in range(_CALIBRATIONS):  # the first calls are slow, and who makes fewer has dearer ones
                self._calls = max(1, round(_HOST_SAMPLE_US / self.sample_us()))

    def lead(self) -> None:
        """Calls on the host start when they are sampled."""

    def start(self) -> None:
        """So there is nothing to do here either."""

    def sample_us(self) -> float:
        end = time.monotonic() + _RETRY_S
        stolen, sample = self._once()
        while not is_clean(stolen) and time.monotonic() < end:
            time.sleep(_GIVE_WAY_S)  # who has slept runs before who has computed
            stolen, sample = min((stolen, sample), self._once())
        self._stolen.append(stolen)
        return sample

    def disturbed(self) -> bool:
        return is_disturbed(self._stolen)

    def _once(self) -> tuple[float, float]:
        """The share of the CPU time that others took, and the microseconds per call."""
        if self._idle_s:
            time.sleep(self._idle.expovariate(1 / self._idle_s))
        with own_cores():
            if self._calls > 1:
                self._call()  # for threads to wake up and the clock to rise
            watch = CpuWatch()
            begin = time.perf_counter_ns()
            for _ in range(self._calls):
                self._call()
            sample = (time.perf_counter_ns() - begin) / 1e3 / self._calls
            return watch.stolen(), sample

    def _call(self) -> None:
        _run(self._plan, next(self._rotation), next(self._activations), self._scratch)


def timer_for(
    plan: Plan, operands: Operands, activations: Sequence[Activation], mode: Mode = DEFAULT_MODE
) -> Timer:
    """The timer of a mode for the operands' kind of device."""
    if operands.device.kind == "cuda":
        if mode == "server":
            return ServerTimer(plan, operands.rotation, activations)
        copies = operands.rotated(activations)
        if mode == "hot":
            copies = copies[:1] * len(copies)
        feed_us = None
        if mode == "model":
            m = len(activations[0].x)
            feed_us = operands.once(f"feed of {m} tokens", lambda: _feed_us(activations))
        return GraphTimer(plan, copies, activations, feed_us)
    rotation = itertools.repeat(operands.copies[0]) if mode == "hot" else operands.rotation
    return HostTimer(plan, rotation, activations, idle_s=_SERVER_IDLE_S if mode == "server" else 0.0)


def time_round(timers: Sequence[Timed], pause_s: float = 0.0) -> list[float]:
    """One sample of every timer, in order, each after `pause_s` seconds of rest.

    A GPU gets the whole round before anyone waits, behind a lead that is not sampled: while it runs the host
    gets ahead, so that no sample holds the host's launch latency. The lead is one more rotation of the last
    timer; where that takes so long that any rotation keeps the host ahead, it is a short spin.
    """
    for timer in timers[-1:]:
        timer.lead()
    for timer in timers:
        timer.start()
    samples = []
    for timer in timers:
        time.sleep(pause_s)
        samples.append(timer.sample_us())
    return samples
