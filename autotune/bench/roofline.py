"""What a device gives at most, measured: bytes read and operations multiplied per microsecond."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from autotune.bench.noise import is_possible
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.device import Device
from autotune.values.layer import Problem
from autotune.values.record import DEFAULT_MODE, Mode

_ROUNDS = 11
_FEW_CORES = 8
"""Cores that a matmul of side 320 keeps busy for long enough: others would interrupt a larger one."""
_PIECES, _PRODUCTS, _PIECE_ROUNDS = 64, 16, 5
"""Of the work on a CPU, which others on all its cores leave it whole for a fraction of a millisecond only."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Measured ceilings of a device for one dtype."""

    bytes_per_us: float
    operations_per_us: float

    def floor_us(self, problem: Problem) -> float:
        """No kernel is faster: the larger of moving the bytes once and doing the operations (the roofline of
        Williams, Waterman and Patterson, 2009)."""
        return max(problem.moved_bytes / self.bytes_per_us, problem.operations / self.operations_per_us)


_measured: dict[tuple[Device, str], Peaks] = {}


def measure_peaks(device: Device, dtype: str) -> Peaks:
    """Ceilings by a sum over far more than the cache, and a large square matmul; measured once.

    The matmul is in `dtype` on a GPU and in fp32 on a CPU, where 16-bit types are computed in fp32 too.
    """
    if (device, dtype) not in _measured:
        _measured[device, dtype] = _measure(device, dtype)
    return _measured[device, dtype]


def floor_us(problem: Problem, device: Device, fastest_us: float, mode: Mode = DEFAULT_MODE) -> float:
    """The roofline's time of the problem, of which something took `fastest_us`.

    Where that is not possible the ceilings are measured again, because others may have held them down.
    """
    dtype = problem.layer.dtype
    floor = measure_peaks(device, dtype).floor_us(problem)
    if is_possible(fastest_us, floor, mode):
        return floor
    before, now = _measured[device, dtype], _measure(device, dtype)
    _measured[device, dtype] = Peaks(
        max(before.bytes_per_us, now.bytes_per_us), max(before.operations_per_us, now.operations_per_us)
    )
    return _measured[device, dtype].floor_us(problem)


def _measure(device: Device, dtype: str) -> Peaks:
    elements, side = (1 << 29, 8192) if device.kind == "cuda" else (1 << 26, 2048)
    if device.kind == "cpu" and device.cores <= _FEW_CORES:
        elements, side = 1 << 25, 320
    multiplied = TORCH_DTYPES[dtype] if device.kind == "cuda" else torch.float32
    stream = torch.ones(elements, dtype=torch.float32, device=device.torch_name)
    pieces, products = (_PIECES, _PRODUCTS) if device.kind == "cpu" else (1, 1)
    parts = stream.chunk(pieces)
    read_us = _fast_us([part.sum for part in parts], device)
    a, b = (torch.randn(side, side, device=device.torch_name).to(multiplied) for _ in range(2))
    multiply_us = _fast_us([lambda: a @ b] * products, device)
    return Peaks(parts[0].nbytes / read_us, 2 * side**3 / multiply_us)


def _fast_us(works: Sequence[Callable[[], object]], device: Device) -> float:
    """Microseconds of one of these works when nobody disturbs it: the median, or of many the third fastest.

    The fastest may have found in a cache what it read.
    """

    def wait() -> None:
        if device.kind == "cuda":
            torch.cuda.synchronize(device.index)

    samples = []
    rounds = _ROUNDS if len(works) == 1 else _PIECE_ROUNDS
    for work in (works[0], *itertools.chain(*itertools.repeat(works, rounds))):
        wait()
        begin = time.perf_counter_ns()
        work()
        wait()
        samples.append((time.perf_counter_ns() - begin) / 1e3)
    return sorted(samples[1:])[_ROUNDS // 2 if len(works) == 1 else 2]
