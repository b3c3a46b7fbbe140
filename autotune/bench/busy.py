"""Keeps a device busy until its clock has settled, so that what runs next runs at the speed of later calls.

The work is a matmul of zeros: the device counts as fully used and raises its clock, but toggles few bits, so
it stays far from the power at which it would lower the clock again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from autotune.bench.monitor import monitor_for

if TYPE_CHECKING:
    from autotune.values.device import Device

_SLICE_S = 0.01
_STEADY_READINGS = 10
_STEADY_WITHIN = 0.01
_BATCH = 8
_HOST_LIMIT_S = 0.1
_SIZE = {"cuda": 2048, "cpu": 256}


def settle(device: Device, limit_s: float = 3.0) -> float:
    """Keep the device busy until its clock stays within 1 %, at most `limit_s` seconds; the seconds it took.

    The clock is what NVML says; without NVML it shows in the rate of the work. A CPU, whose clock is not one
    number, only gets a short run.
    """
    monitor = monitor_for(device)
    limit_s = limit_s if device.kind == "cuda" else min(limit_s, _HOST_LIMIT_S)
    return keep_busy(device, limit_s, lambda: monitor.read().clock_mhz)


def keep_busy(device: Device, limit_s: float, clock: Callable[[], float | None] | None = None) -> float:
    """Work until ten readings of the clock in a row, 10 ms apart, are within 1 %; at most `limit_s` seconds.

    `clock` reads the device's clock in any unit. Where there is none, or it gives None, the rate of the work
    itself is the reading. Returns the seconds that it took; the device is idle then.
    """
    work = _Work(device)
    started = time.perf_counter()
    readings: list[float] = []
    while not _steady(readings) and time.perf_counter() - started < limit_s:
        rate = work.slice_rate()
        known = clock() if clock is not None else None
        readings.append(rate if known is None else known)
    return time.perf_counter() - started


def _steady(readings: list[float]) -> bool:
    last = readings[-_STEADY_READINGS:]
    return len(last) == _STEADY_READINGS and max(last) - min(last) <= _STEADY_WITHIN * max(last)


class _Work:
    """Batches of a matmul of zeros on one device."""

    def __init__(self, device: Device) -> None:
        import torch

        size = _SIZE[device.kind]
        dtype = torch.float16 if device.kind == "cuda" else torch.float32
        self._device = device
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            self._a, self._out = (
                torch.zeros(size, size, dtype=dtype, device=device.torch_name) for _ in range(2)
            )

    def slice_rate(self) -> float:
        """Work for one slice of time; the rate of its fastest batch, in batches per second."""
        end = time.perf_counter() + _SLICE_S
        best_s = self._batch_s()
        while time.perf_counter() < end:
            best_s = min(best_s, self._batch_s())
        return 1 / best_s

    def _batch_s(self) -> float:
        import torch

        if self._device.kind != "cuda":
            started = time.perf_counter()
            self._multiply()
            return time.perf_counter() - started
        with torch.cuda.device(self._device.index):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self._multiply()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3

    def _multiply(self) -> None:
        import torch

        with torch.no_grad():
            for _ in range(_BATCH):
                torch.mm(self._a, self._a, out=self._out)
