"""A device that others use: who measures waits for it, and says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from command_line import PROGRAM
from places import ROOT

from autotune import _C
from autotune.bench.cores import own_cores
from autotune.bench.monitor import Reading, monitor_for
from autotune.bench.sharing import wait_until_free
from autotune.executors.line import Line
from autotune.values.device import cpu_device, find_device
from autotune.values.locks import device_lock

SWEEP = ("sweep", "--shapes", "n=64,k=64,group_size=64", "--m", "1", "--device", "cpu", "--json")


class Readings:
    """A monitor that gives these readings, and the last one again and again."""

    def __init__(self, *readings: Reading) -> None:
        self.left = list(readings)

    def read(self) -> Reading:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


@pytest.mark.parametrize(
    "free",
    [
        Reading(),
        Reading(used_percent=100),
        Reading(used_percent=0, others=(7,)),
        Reading(others=(7,)),
    ],
    ids=["nothing known", "by ourselves", "others that do nothing", "others of unknown use"],
)
def test_nobody_is_waited_for(free):
    said = []
    wait_until_free(Readings(free), said.append)
    assert said == []


def test_a_device_that_others_use_is_waited_for():
    busy = Reading(used_percent=90, others=(7, 9))
    said = []
    wait_until_free(Readings(*[busy] * 12, Reading()), said.append)
    assert said
    assert all("processes 7, 9" in line and "--allow-busy" in line for line in said)


def sweep(folder, *arguments):
    command = (*PROGRAM, *SWEEP, "--db", "here.db", *arguments)
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_sweep_waits_for_another_one_on_the_device(tmp_path):
    with device_lock(cpu_device()):
        process = sweep(tmp_path)
        told = next(line for line in process.stderr if "waiting" in line)
        assert cpu_device().name in told
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(out)["config"]


def test_who_waits_is_told_the_process_and_its_database(tmp_path):
    line = Line(cpu_device(), "/home/u/mine.db")
    assert line.take(0.0)
    try:
        process = sweep(tmp_path)
        told = next(line for line in process.stderr if "waiting" in line)
        assert f"(process {os.getpid()}, database /home/u/mine.db)" in told
        process.kill()
        process.communicate(timeout=120)
    finally:
        line.leave()


def test_allow_busy_waits_for_nobody(tmp_path):
    with device_lock(cpu_device()):
        out, error = sweep(tmp_path, "--allow-busy").communicate(timeout=120)
    assert json.loads(out)["config"]
    assert "waiting" not in error


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinities")
def test_a_timed_thread_has_one_core_and_gets_all_back():
    before = os.sched_getaffinity(0)
    with own_cores():
        assert len(os.sched_getaffinity(0)) == 1
        assert os.sched_getaffinity(0) <= before
    assert os.sched_getaffinity(0) == before


def test_a_cpu_that_is_not_there():
    with pytest.raises(ValueError, match="no such CPU"):
        _C.cpu_pin([-1])


def _is_seen(monitor) -> bool:
    """Whether NVML, which tells of the last second, tells of the other process at last."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        reading = monitor.read()
        if reading.others and reading.used_percent and reading.used_percent > 50:
            return True
    return False


@pytest.mark.gpu
def test_a_gpu_that_another_process_computes_on_is_waited_for():
    device = find_device("cuda")
    busy = "a = torch.randn(4096, 4096, device='cuda'); print('ready', flush=True)\nwhile True: a @ a"
    work = f"import torch; {busy}"
    other = subprocess.Popen((sys.executable, "-c", work), stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "ready\n"
        assert _is_seen(monitor_for(device)), monitor_for(device).read()
        said = []

        def say(line: str) -> None:
            said.append(line)
            other.kill()

        wait_until_free(monitor_for(device), say)
        assert said
    finally:
        other.kill()
        other.wait()
