"""Sweeps on several GPUs: each measures its own kernels, and the problems are shared."""

from __future__ import annotations

import pynvml
import pytest

from autotune.executors.local import local_executors
from autotune.search.executor import by_model
from autotune.search.sweep import sweep
from autotune.store.store import Store
from autotune.values.device import Device, cuda_devices, device_id
from autotune.values.layer import Layer, Problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(len(cuda_devices()) < 2, reason="needs two NVIDIA GPUs"),
]

PROBLEMS = [Problem(Layer(n=n, k=4096), m) for n in (4096, 8192) for m in (1, 16, 256)]


@pytest.fixture
def executors():
    made = by_model(local_executors("all", allow_busy=True))[0]
    yield made
    for each in made:
        each.close()


def test_gpus_share_the_problems(executors, tmp_path):
    with Store.open(str(tmp_path / "fleet.db")) as store:
        outcomes = list(sweep(PROBLEMS, store, executors))
        assert sorted(outcome.problem for outcome in outcomes) == sorted(PROBLEMS)
        assert [record.problem for record in store.records(executors[0].device)] == sorted(PROBLEMS)
    assert all(outcome.failed == 0 for outcome in outcomes)


def test_every_gpu_times_what_runs_on_it(executors, tmp_path):
    # Events of another GPU than the kernel's have next to no time between them.
    for index, executor in enumerate(executors):
        with Store.open(str(tmp_path / f"{index}.db")) as store:
            (outcome,) = sweep(PROBLEMS[:1], store, [executor])
        assert outcome.record is not None
        assert outcome.record.median_us > outcome.record.evidence.floor_us / 2


def users(device: Device) -> int:
    """How many processes have a context on it."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(device_id(device))
    return len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))


def test_a_worker_is_on_its_own_gpu_only(executors, tmp_path):
    devices = [executor.device for executor in executors]
    before = [users(device) for device in devices]
    with Store.open(str(tmp_path / "fleet.db")) as store:
        list(sweep(PROBLEMS, store, executors))
    assert [users(device) for device in devices] == [count + 1 for count in before]
