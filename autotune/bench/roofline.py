"""What a device gives at most, measured: bytes read and operations multiplied per microsecond."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from autotune.bench.statistics import median_interval
from autotune.device import Device
from autotune.layer import Problem
from autotune.packing.quantized import TORCH_DTYPES

_ROUNDS = 11
_FEW_CORES = 8
"""Cores that a matmul of side 768 keeps busy for over a millisecond: a larger one would only take longer."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Measured ceilings of a device for one dtype."""

    bytes_per_us: float
    operations_per_us: float

    def floor_us(self, problem: Problem) -> float:
        """No kernel is faster: the larger of moving the bytes once and doing the operations (the roofline of
        Williams, Waterman and Patterson, 2009)."""
        return max(problem.moved_bytes / self.bytes_per_us, problem.operations / self.operations_per_us)


@functools.cache
def measure_peaks(device: Device, dtype: str) -> Peaks:
    """Ceilings by a sum over far more than the cache, and a large square matmul; measured once.

    The matmul is in `dtype` on a GPU and in fp32 on a CPU, where 16-bit types are computed in fp32 too.
    """
    elements, side = (1 << 29, 8192) if device.kind == "cuda" else (1 << 26, 2048)
    if device.kind == "cpu" and device.cores <= _FEW_CORES:
        elements, side = 1 << 25, 768
    multiplied = TORCH_DTYPES[dtype] if device.kind == "cuda" else torch.float32
    stream = torch.ones(elements, dtype=torch.float32, device=device.torch_name)
    read_us = _median_us(lambda: stream.sum(), device)
    a, b = (torch.randn(side, side, device=device.torch_name).to(multiplied) for _ in range(2))
    multiply_us = _median_us(lambda: a @ b, device)
    return Peaks(stream.nbytes / read_us, 2 * side**3 / multiply_us)


def _median_us(work: Callable[[], object], device: Device) -> float:
    def wait() -> None:
        if device.kind == "cuda":
            torch.cuda.synchronize(device.index)

    samples = []
    for _ in range(_ROUNDS + 1):
        wait()
        begin = time.perf_counter_ns()
        work()
        wait()
        samples.append((time.perf_counter_ns() - begin) / 1e3)
    return median_interval(samples[1:]).median
