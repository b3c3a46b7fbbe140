"""Timers: each gives samples of the mean microseconds per call over rotating weight copies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import torch

from autotune.bench.operands import Operands
from autotune.kernels.family import Plan
from autotune.kernels.workspace import workspace

_HOST_SAMPLE_US = 2000.0


class Timer(Protocol):
    """One plan made ready for timing."""

    def start(self) -> None:
        """Enqueue one rotation through the weight copies, where calls can be enqueued."""

    def sample_us(self) -> float:
        """Microseconds per call, once what was started has ended."""


class GraphTimer:
    """A CUDA graph of one call per weight copy, between events."""

    def __init__(self, plan: Plan, operands: Operands, x: torch.Tensor, out: torch.Tensor) -> None:
        self._calls = len(operands.copies)
        self._graph = torch.cuda.CUDAGraph()
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The workspace is made before the capture, so that the graph holds kernels and nothing else.
        self._workspace = workspace(x.device, plan.workspace_bytes(len(x)))
        plan.run(x, operands.copies[0], None, out, self._workspace)
        with torch.cuda.graph(self._graph):
            for copy in operands.copies:
                plan.run(x, copy, None, out, self._workspace)

    def start(self) -> None:
        self._begin.record()
        self._graph.replay()
        self._end.record()

    def sample_us(self) -> float:
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) * 1e3 / self._calls


class HostTimer:
    """Calls on rotating weight copies, by the host's clock."""

    def __init__(self, plan: Plan, operands: Operands, x: torch.Tensor, out: torch.Tensor) -> None:
        self._plan, self._operands, self._x, self._out = plan, operands, x, out
        self._calls = 1
        self._calls = max(1, min(len(operands.copies), round(_HOST_SAMPLE_US / self.sample_us())))

    def start(self) -> None:
        """Calls on the host start when they are sampled."""

    def sample_us(self) -> float:
        plan, rotation = self._plan, self._operands.rotation
        scratch = workspace(self._x.device, plan.workspace_bytes(len(self._x)))
        begin = time.perf_counter_ns()
        for _ in range(self._calls):
            plan.run(self._x, next(rotation), None, self._out, scratch)
        return (time.perf_counter_ns() - begin) / 1e3 / self._calls


def timer_for(plan: Plan, operands: Operands, x: torch.Tensor, out: torch.Tensor) -> Timer:
    """The timer of the operands' kind of device."""
    make = GraphTimer if operands.device.kind == "cuda" else HostTimer
    return make(plan, operands, x, out)


def time_round(timers: Sequence[Timer], pause_s: float = 0.0) -> list[float]:
    """One sample of every timer, in order, each after `pause_s` seconds of rest.

    A GPU gets the whole round before anyone waits, behind one rotation that is not sampled: while it runs the
    host gets ahead, so that no sample holds the host's launch latency.
    """
    for timer in (*timers[-1:], *timers):
        timer.start()
    samples = []
    for timer in timers:
        time.sleep(pause_s)
        samples.append(timer.sample_us())
    return samples
