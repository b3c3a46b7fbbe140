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
        """Enqueue one rotation through the weight copies, without waiting for it."""

    def sample_us(self) -> float:
        """Wait for what was started; microseconds per call."""


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
        self._calls, self._took_us = 1, 0.0
        self.start()
        self._calls = max(1, min(len(operands.copies), round(_HOST_SAMPLE_US / self._took_us)))

    def start(self) -> None:
        plan, rotation = self._plan, self._operands.rotation
        scratch = workspace(self._x.device, plan.workspace_bytes(len(self._x)))
        begin = time.perf_counter_ns()
        for _ in range(self._calls):
            plan.run(self._x, next(rotation), None, self._out, scratch)
        self._took_us = (time.perf_counter_ns() - begin) / 1e3 / self._calls

    def sample_us(self) -> float:
        return self._took_us


def timer_for(plan: Plan, operands: Operands, x: torch.Tensor, out: torch.Tensor) -> Timer:
    """The timer of the operands' kind of device."""
    make = GraphTimer if operands.device.kind == "cuda" else HostTimer
    return make(plan, operands, x, out)


def time_round(timers: Sequence[Timer]) -> list[float]:
    """One sample of every timer, in order. On a GPU the whole round is enqueued before it is waited for, so
    that no candidate's sample holds the host's launch latency."""
    for timer in timers:
        timer.start()
    return [timer.sample_us() for timer in timers]
