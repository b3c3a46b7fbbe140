"""A sweep that is killed or interrupted: nothing is lost, nothing is timed twice, no process stays."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from command_line import PROGRAM
from places import ROOT

from autotune.store.store import Store
from autotune.values.counts import counted
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

LAYER = Layer(256, 256)
ARGUMENTS = (
    "sweep", "--shapes", "n=256,k=256", "--m", "1,2,4,8", "--device", "cpu", "--budget", "60s",
    "--db", "here.db", "--json",
)  # fmt: skip


def begin(folder):
    """A sweep in a process group of its own, as from a terminal."""
    return subprocess.Popen(
        (*PROGRAM, *ARGUMENTS),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(process):
    """Descriptors of the process' children, each readable when that child has ended."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    ids = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [os.pidfd_open(child) for child in ids]


def all_end(descriptors):
    """Whether every process behind these ends within a minute."""
    ended = [bool(select.select([each], [], [], 60)[0]) for each in descriptors]
    for each in descriptors:
        os.close(each)
    return all(ended)


def results(lines):
    found = [json.loads(line) for line in lines]
    return {each["m"]: each for each in found if not each["resumed"]}


def kill_after(folder, count):
    """Kill a sweep -9 when it has printed so many new results; all that it printed."""
    with begin(folder) as sweep:
        assert "4 problems" in sweep.stderr.readline()
        printed = []
        while len(results(printed)) < count:
            printed.append(sweep.stdout.readline())
        workers = children(sweep)
        sweep.kill()
        printed.extend(sweep.stdout.read().splitlines())
    assert sweep.returncode == -signal.SIGKILL
    assert all_end(workers)
    return results(printed)


def test_a_sweep_killed_again_and_again_loses_nothing_and_repeats_nothing(tmp_path):
    before = {}
    for count in (0, 1, 1):
        before |= kill_after(tmp_path, count)
    assert len(before) >= 2
    with begin(tmp_path) as sweep:
        printed, errors = sweep.communicate()
    assert sweep.returncode == 0, errors
    last = {each["m"]: each for each in map(json.loads, printed.splitlines())}
    assert {m: last[m]["config"] for m in before} == {m: each["config"] for m, each in before.items()}
    assert all(last[m]["resumed"] for m in before)
    with Store.open(str(tmp_path / "here.db")) as store:
        assert [record.problem for record in store.records()] == [Problem(LAYER, m) for m in (1, 2, 4, 8)]
        for record in store.records():
            times = Counter(trial.config for trial in store.trials(record.problem, cpu_device()))
            assert set(times.values()) == {1}


def test_an_interrupt_ends_the_worker_at_once_and_quietly(tmp_path):
    with begin(tmp_path) as sweep:
        first = json.loads(sweep.stdout.readline())
        workers = children(sweep)
        os.killpg(sweep.pid, signal.SIGINT)
        rest, errors = sweep.communicate()
    assert sweep.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == f"interrupted: {counted(1 + len(rest.splitlines()), 'problem')} stored"
    assert workers
    assert all_end(workers)
    with Store.open(str(tmp_path / "here.db")) as store:
        assert Problem(LAYER, first["m"]) in [record.problem for record in store.records()]


def test_an_interrupt_while_the_worker_starts_is_quiet_too(tmp_path):
    with begin(tmp_path) as sweep:
        assert "4 problems" in sweep.stderr.readline()
        os.killpg(sweep.pid, signal.SIGINT)
        _, errors = sweep.communicate()
    assert sweep.returncode == 130, errors
    assert errors.splitlines() == ["interrupted: 0 problems stored"]
