"""What of a GPU can be read: whole GPUs, slices of them, and where NVML is not to be had.

No machine of the tests has slices, so NVML is one that answers as its documentation says of them.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
from store_samples import H200

from autotune.bench import monitor
from autotune.bench.monitor import monitor_for, unwatched
from autotune.executors.local import LocalExecutor
from autotune.executors.worker import work
from autotune.families import registry
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem

ID = "0f1e2d3c-0000-1111-2222-333344445555"


class NotFoundError(Exception):
    """As NVML says that it does not know a device, or a slice's clock."""


class Nvml(ModuleType):
    """Knows the devices of these ids; of a slice it tells the processes only."""

    NVMLError = NotFoundError
    NVML_CLOCK_SM = NVML_TEMPERATURE_GPU = 0

    def __init__(self, *known: str) -> None:
        super().__init__("pynvml")
        self._known = known
        self.pids = [1]

    def nvmlInit(self) -> None:  # noqa: N802
        """Always works."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self._known:
            raise NotFoundError("Not Found")
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, _: str) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self.pids]

    def _of_a_whole_one(self, handle: str, *_: int) -> int:
        if handle.startswith("MIG-"):
            raise NotFoundError("Not Supported")
        return 1500

    nvmlDeviceGetClockInfo = nvmlDeviceGetTemperature = nvmlDeviceGetPowerUsage = _of_a_whole_one  # noqa: N815

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=self._of_a_whole_one(handle))


@pytest.fixture
def nvml(monkeypatch):
    """Makes the NVML that knows these devices the one of this process."""
    monkeypatch.setattr(monitor, "device_id", lambda _: f"GPU-{ID}")
    monitor._found.cache_clear()
    yield lambda *known: monkeypatch.setitem(sys.modules, "pynvml", Nvml(*known))
    monitor._found.cache_clear()


def test_a_whole_gpu_is_watched(nvml):
    nvml(f"GPU-{ID}")
    assert unwatched(H200) is None
    assert monitor_for(H200).read().clock_mhz == 1500


def test_of_a_slice_the_processes_are_seen_and_the_rest_is_said(nvml):
    nvml(f"MIG-{ID}")
    assert monitor_for(H200).read().others == (1,)
    told = f"NVIDIA H200 (GPU-{ID}): NVML does not tell its clock and whether others compute there"
    assert unwatched(H200) == told


def test_a_gpu_that_nvml_does_not_find_is_named(nvml):
    nvml()
    assert monitor_for(H200).read().others == ()
    assert unwatched(H200).startswith(f"NVIDIA H200 (GPU-{ID}): its clock is not seen, nor whether others")
    assert "Not Found" in unwatched(H200)


def tell_others(pipe):
    """In a worker: whom it sees besides itself and its parent, by what NVML lists."""
    nvml = sys.modules["pynvml"] = Nvml(f"GPU-{ID}")
    monitor.device_id = lambda _: f"GPU-{ID}"
    watch = monitor_for(H200)
    watch.parent_holds = False
    nvml.pids = [os.getppid(), 7, os.getpid(), 9]
    pipe.send(watch.read().others)
    monitor.holds_gpu = lambda: True
    nvml.pids = [101, 102]  # how a container's processes are seen from outside of it
    for watch.parent_holds in (False, True):
        pipe.send(watch.read().others)


def test_a_worker_does_not_count_the_process_that_started_it():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=tell_others, args=(theirs,))
    process.start()
    theirs.close()
    assert [ours.recv() for _ in range(3)] == [(7, 9), (101,), ()]
    process.join()


def test_without_nvml_the_remedy_is_named(nvml, monkeypatch):
    nvml()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in unwatched(H200)


def test_a_cpu_is_not_to_be_watched():
    assert unwatched(cpu_device()) is None


def work_unwatched(pipe, device):
    monitor._found = lambda _: (monitor._HostMonitor(), "it is a slice")
    work(pipe, device)


def test_what_is_not_watched_is_said_once(caplog):
    problems = [Problem(Layer(64, 64, group_size=64), m) for m in (1, 2)]
    with (
        caplog.at_level(logging.WARNING),
        LocalExecutor(cpu_device(), entry=work_unwatched, allow_busy=True) as executor,
    ):
        for problem in problems:
            executor.tune(problem, [registry.default_config(problem, cpu_device())], {}, budget_s=0.1)
    assert [line for line in caplog.messages if "slice" in line] == ["it is a slice"]
