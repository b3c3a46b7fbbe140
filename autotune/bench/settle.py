"""Brings a device to a steady clock before anything on it is timed."""

from __future__ import annotations

from autotune.bench.busy import keep_busy
from autotune.bench.monitor import monitor_for
from autotune.values.device import Device

_HOST_LIMIT_S = 0.1


def settle(device: Device, limit_s: float = 3.0) -> float:
    """Keep the device busy until its clock stays within 1 %, at most `limit_s` seconds; the seconds it took.

    The clock is what NVML says; without NVML it shows in the rate of the work. A CPU, whose clock is not one
    number, only gets a short run.
    """
    monitor = monitor_for(device)
    limit_s = limit_s if device.kind == "cuda" else min(limit_s, _HOST_LIMIT_S)
    return keep_busy(device, limit_s, lambda: monitor.read().clock_mhz)
