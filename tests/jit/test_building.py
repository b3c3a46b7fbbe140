"""Many units at once: in threads, in processes, beside another process that builds the same."""

import functools
import hashlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from autotune.jit import building, compiler
from autotune.jit.building import build_all

pytestmark = [
    pytest.mark.skipif(compiler.find_compiler() is None, reason="no CUDA compiler here"),
    pytest.mark.usefixtures("own_cache"),
]


@pytest.fixture
def processes(monkeypatch):
    """Two processes, where a bigger machine would have more than its useful threads."""
    monkeypatch.setattr(building, "_USEFUL_THREADS", 1)
    return functools.partial(build_all, workers=2, processes=True)


BUILD_ALL = """
import hashlib, sys
from autotune.jit.building import build_all
from autotune.jit.unit import Unit
units = [Unit(sys.argv[1], (("AMOUNT", amount),), "sm_80") for amount in range(8)]
for cubin in build_all(units, workers=2).values():
    print(hashlib.sha256(cubin).hexdigest())
"""


def test_two_processes_share_a_cache(write, own_cache):
    command = [sys.executable, "-c", BUILD_ALL, write().source]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (sorted(process.communicate()[0].split()) for process in processes)
    assert first == second
    assert len(set(first)) == 8
    assert sorted(hashlib.sha256(file.read_bytes()[32:]).hexdigest() for file in own_cache.iterdir()) == first


def test_build_all_builds_equal_units_once_and_keeps_errors_apart(write):
    good, bad = write(AMOUNT=1), write("broken", AMOUNT=1)
    calls = []
    built = build_all([good, bad, good], workers=2, on_done=lambda *done: calls.append(done))
    assert built[good.key] == compiler.build(good)
    assert isinstance(built[bad.key], compiler.SourceError)
    assert sorted(calls, key=str) == sorted(built.items(), key=str)


def test_units_are_built_in_their_order_while_others_are_still_to_come(write, own_cache):
    def units():
        yield write(AMOUNT=1)
        while not list(own_cache.glob("*.cubin")):
            pass
        yield write(AMOUNT=2)

    assert len(build_all(units(), workers=1)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux only")
def test_compiling_leaves_the_cores_to_others(write):
    def note(*_):
        found.update(os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir("/proc/self/task"))

    before, found = os.getpriority(os.PRIO_PROCESS, 0), set()
    build_all([write(AMOUNT=1)], on_done=note)
    assert max(found) > before
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_build_all_of_nothing():
    assert build_all([]) == {}


def test_interrupt_leaves_the_rest_unbuilt(write, own_cache):
    def interrupt(*_):
        raise KeyboardInterrupt

    units = [write(AMOUNT=amount) for amount in range(60)]
    with pytest.raises(KeyboardInterrupt):
        build_all(units, workers=1, on_done=interrupt)
    assert 1 <= len(list(own_cache.iterdir())) < len(units)


def test_processes_build_what_threads_build(write, processes, monkeypatch, tmp_path):
    units = [write("broken"), *(write(AMOUNT=amount) for amount in range(4))]
    calls, alive = [], []

    def note(*done):
        calls.append(done)
        alive.append(len(multiprocessing.active_children()))

    built = processes(units, on_done=note)
    assert alive[0] == 2
    assert sorted(calls, key=str) == sorted(built.items(), key=str)
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "other"))
    threads = build_all(units, workers=2)
    assert [type(threads[unit.key]) for unit in units] == [compiler.SourceError, *[bytes] * 4]
    assert {key: str(each) for key, each in built.items()} == {
        key: str(each) for key, each in threads.items()
    }
    assert built[units[0].key].log == threads[units[0].key].log


def test_what_is_cached_needs_no_process(write, processes):
    unit = write(AMOUNT=1)
    cubin = compiler.build(unit)
    alive = []
    assert processes([unit], on_done=lambda *_: alive.extend(multiprocessing.active_children()))
    assert processes([unit]) == {unit.key: cubin}
    assert alive == []


def test_a_killed_process_costs_no_kernel(write, processes, caplog):
    def kill(*_):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    units = [write(AMOUNT=amount) for amount in range(60)]
    with caplog.at_level(logging.WARNING):
        built = processes(units, on_done=kill)
    assert [type(each) for each in built.values()] == [bytes] * len(units)
    assert caplog.messages == ["a process that compiled was killed: threads compile the rest"]
