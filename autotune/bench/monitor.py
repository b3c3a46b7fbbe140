"""Reads the state of a device between rounds: clock, temperature, power, and who else uses it."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from typing import Any, Protocol

from autotune.values.device import Device, device_id

_UNSEEN = "its clock is not seen, nor whether others compute there"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a device said of itself; None where it says nothing.

    `used_percent` is the share of about the last second in which it computed, for whomever; `others` are the
    ids of other processes that have a context on it.
    """

    clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    used_percent: int | None = None
    others: tuple[int, ...] = ()


class Monitor(Protocol):
    """A source of readings.

    `parent_holds`: whether the parent of a worker has a context on the device too, as a notebook has; None
    where this process is no worker.
    """

    parent_holds: bool | None

    def read(self) -> Reading:
        """The state as of now."""

    def joules(self) -> float | None:
        """The energy that the device has taken since its driver was loaded, None where it does not tell."""


class _HostMonitor:
    """A CPU, of which nothing is read: its clock is not one number and it is always shared."""

    parent_holds: bool | None = None

    def read(self) -> Reading:
        return Reading()

    def joules(self) -> float | None:
        return None


class _GpuMonitor:
    """An NVIDIA GPU through NVML."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.parent_holds: bool | None = None

    def read(self) -> Reading:
        nvml, handle = self._nvml, self._handle
        return Reading(
            clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            temperature_c=self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=_watts(self._ask(nvml.nvmlDeviceGetPowerUsage, handle)),
            used_percent=getattr(self._ask(nvml.nvmlDeviceGetUtilizationRates, handle), "gpu", None),
            others=_others(
                self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or [], self.parent_holds
            ),
        )

    def joules(self) -> float | None:
        millijoules = self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        return None if millijoules is None else millijoules / 1e3

    def _ask(self, question: Any, *arguments: Any) -> Any:
        """The answer, or None from a device or driver that does not know."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1e3


def _others(processes: list[Any], parent_holds: bool | None) -> tuple[int, ...]:
    """Process ids on the GPU but ours and, of a worker, its parent's, which waits for it.

    In a container they may go by other numbers: then one is left out for each that is known to be there.
    """
    ids = [process.pid for process in processes]
    own = {os.getpid(): holds_gpu()}
    if parent_holds is not None:
        own[os.getppid()] = parent_holds
    hidden = sum(holds and pid not in ids for pid, holds in own.items())
    others = sorted(pid for pid in ids if pid not in own)
    return tuple(others[: max(0, len(others) - hidden)])


def holds_gpu() -> bool:
    """Whether this process computes on a GPU, which takes torch; to read a GPU does not."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def monitor_for(device: Device) -> Monitor:
    """The device's monitor; one that reads nothing for a CPU, and where NVML is not to be had."""
    return _found(device)[0]


def unwatched(device: Device) -> str | None:
    """What of a GPU cannot be read, so that measurements there are not checked for it; None: nothing.

    A slice of a GPU (MIG) tells no use, for one.
    """
    return _found(device)[1]


@functools.cache
def _found(device: Device) -> tuple[Monitor, str | None]:
    if device.kind != "cuda":
        return _HostMonitor(), None
    name = f"{device.name} ({device_id(device)})"
    try:
        import pynvml
    except ImportError:
        return _HostMonitor(), f"{name}: {_UNSEEN}, because pynvml is missing; pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
        monitor = _GpuMonitor(pynvml, _handle(pynvml, device_id(device)))
    except pynvml.NVMLError as error:
        return _HostMonitor(), f"{name}: {_UNSEEN}, because NVML does not find it ({error})"
    reading = monitor.read()
    told = {"its clock": reading.clock_mhz, "whether others compute there": reading.used_percent}
    missing = [what for what, value in told.items() if value is None]
    return monitor, f"{name}: NVML does not tell {' and '.join(missing)}" if missing else None


def _handle(nvml: Any, uuid: str) -> Any:
    """NVML's handle of a GPU; CUDA gives a slice of one (MIG) an id that NVML knows by another prefix."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(uuid.replace("GPU-", "MIG-", 1))
