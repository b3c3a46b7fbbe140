"""The device that a record belongs to: a model of GPU or CPU, never a machine."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from autotune import _C
from autotune.values.counts import counted
from autotune.values.errors import DeviceError

_OLDEST_ARCH = 80
_CORE = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """A device model and what spaces and timers need to know of it.

    `kind` is "cuda" or "cpu"; `index` says which of the machine's devices it is. `arch` is `sm_90`, or
    `x86_64_avx512_bf16`, `x86_64_avx512`,
    `x86_64_avx2`, `portable`. `cores` counts multiprocessors or usable CPU threads;
    `l2_bytes` is the last cache before memory; `shared_bytes` is the largest shared memory of one block.
    """

    kind: str
    index: int
    name: str
    arch: str
    cores: int
    l2_bytes: int
    shared_bytes: int
    memory_bytes: int

    @property
    def torch_name(self) -> str:
        """How torch calls the device."""
        return f"cuda:{self.index}" if self.kind == "cuda" else "cpu"


def find_device(name: str = "auto") -> Device:
    """The device called `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`; a torch.device goes too.

    Raises:
        DeviceError: there is no such device, or it is older than sm_80.
    """
    name = str(name)
    if name == "cpu" or (name == "auto" and not cuda_devices()):
        return cpu_device()
    kind, _, index = name.partition(":")
    if name != "auto" and (kind != "cuda" or (index and not index.isdecimal())):
        raise DeviceError(f"device {name!r} is not auto, cpu, cuda or cuda:N")
    found = cuda_devices()
    if not found:
        raise DeviceError(f"device {name!r}: no NVIDIA GPU here ({gpu_trouble()}); use --device cpu")
    wanted = int(index or 0)
    if wanted >= len(found):
        last = len(found) - 1
        raise DeviceError(f"device {name!r} is not here; the NVIDIA GPUs are cuda:0 to cuda:{last}")
    device = found[wanted]
    if int(device.arch.removeprefix("sm_")) < _OLDEST_ARCH:
        raise DeviceError(f"{device.name} is {device.arch}; the CUDA kernels need sm_{_OLDEST_ARCH} or later")
    return device


@functools.cache
def cuda_devices() -> tuple[Device, ...]:
    """Every NVIDIA GPU that the driver shows, in its order; empty without a driver."""
    return tuple(
        Device(
            kind="cuda",
            index=index,
            name=info["name"],
            arch=f"sm_{info['major']}{info['minor']}",
            cores=info["multiprocessors"],
            l2_bytes=info["l2_bytes"],
            shared_bytes=info["shared_bytes"],
            memory_bytes=info["memory_bytes"],
        )
        for index, info in enumerate(_C.cuda_devices())
    )


def gpu_trouble() -> str:
    """Why the driver shows no GPU, in its own words."""
    return str(_C.cuda_unavailable_reason())


def driver_of(device: Device) -> str:
    """The version of what lies between a kernel and the device: the driver; a CPU's operating system."""
    if device.kind == "cuda":
        return f"CUDA {_C.cuda_driver_version()}"
    system = os.uname()
    return f"{system.sysname} {system.release}"


def device_id(device: Device) -> str:
    """Which of all devices it is, whatever the process calls it: a GPU's UUID; `cpu`."""
    return str(_C.cuda_devices()[device.index]["uuid"]) if device.kind == "cuda" else "cpu"


@functools.cache
def cpu_device() -> Device:
    """The CPU of this machine, with the threads that this process may compute with.

    OMP_NUM_THREADS limits them as the affinity does. Fewer threads are another device, whose name has their
    number: what is fastest with two need not be so with one.
    """
    threads = _limited(usable_cpus())
    return Device(
        kind="cpu",
        index=0,
        name=f"{_cpu_model()} ({counted(threads, 'thread')})",
        arch=_C.cpu_arch(),
        cores=threads,
        l2_bytes=_last_cache_bytes(),
        shared_bytes=0,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def usable_cpus() -> int:
    """How many CPUs the system lets this process run on."""
    return len(_affinity())


@functools.cache
def torch_threads() -> int:
    """With how many threads torch computes where nobody told it: one for each core of the usable CPUs."""
    return _limited(len({_core(cpu) for cpu in _affinity()}))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _limited(threads: int) -> int:
    """No more than OMP_NUM_THREADS, whose first number is for loops that are not inside others."""
    wanted = re.match(r"\s*\+?([0-9]+)\s*(,|$)", os.environ.get("OMP_NUM_THREADS", ""))
    limit = int(wanted[1]) if wanted else 0
    return min(threads, limit) if limit > 0 else threads


def _core(cpu: int) -> str:
    """The CPUs of its core; where the system does not say it, the CPU alone."""
    try:
        return Path(_CORE.format(cpu)).read_text(encoding="ascii")
    except OSError:
        return str(cpu)


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return "CPU"


def _last_cache_bytes() -> int:
    known = [name for name in ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE") if name in os.sysconf_names]
    return next((size for name in known if (size := os.sysconf(name)) > 0), 32 << 20)
