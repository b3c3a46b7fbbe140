"""Candidates that crash for real: each fails with its reason, and the sweep goes on in another worker."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from multiprocessing import Pipe

import crashing
import pytest
from crashing import config_of

from autotune.executors.local import LocalExecutor
from autotune.executors.worker import _Worker
from autotune.families import registry
from autotune.search.sweep import sweep
from autotune.serving.vllm import peer
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.errors import DeviceError
from autotune.values.layer import Layer, Problem

LAYER = Layer(n=128, k=256, group_size=64)
PROBLEM = Problem(LAYER, 1)
DEFAULT, GOOD = config_of(crashing.NOTHING, calls=50), config_of(crashing.NOTHING)
LIMIT_S = 5.0


@pytest.fixture(autouse=True)
def _families(monkeypatch):
    monkeypatch.setattr(registry, "families", crashing.families)


@pytest.fixture(scope="module")
def executor():
    """One for all tests, because a worker takes over a second to start."""
    with LocalExecutor(cpu_device(), LIMIT_S, crashing.work) as local:
        yield local


@pytest.fixture
def fifo(fifo, executor):
    """Of the executor's next worker, which inherits its name."""
    executor.close()
    return fifo


def tuned_with(executor, *acts, problem=PROBLEM):
    """What became of the default, these and a good config, which is the last."""
    return executor.tune(problem, [DEFAULT, *(config_of(act) for act in acts), GOOD], {})


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (crashing.SEGFAULT, "it crashed its worker: signal 11 (SIGSEGV)"),
        (crashing.ABORT, "it crashed its worker: signal 6 (SIGABRT)"),
        (crashing.EXIT, "it ended its worker with exit code 3"),
        (crashing.LOOP, "it did not end within 5 s"),
        (crashing.MEMORY, "it raised MemoryError: no room for the candidate"),
        (crashing.BUG, "it raised ZeroDivisionError: a bug of the family (crashing.py:"),
    ],
)
def test_who_crashes_fails_and_the_others_are_measured(executor, act, reason):
    tuned = tuned_with(executor, act)
    trials = {trial.config: trial for trial in tuned.trials}
    assert trials[config_of(act)].status == "failed"
    assert trials[config_of(act)].error.startswith(reason)
    assert [trials[config].status for config in (DEFAULT, GOOD)] == ["ok", "ok"]
    assert tuned.record.config == GOOD


def test_a_peer_that_cannot_be_had_keeps_no_operands(monkeypatch):
    """The error has the frames that it went through, and these the operands."""

    def none(operands):
        raise ValueError(f"no kernel of {operands.layer}")

    monkeypatch.setattr(peer, "vllm_peer", none)
    ours, theirs = Pipe()
    with ours, theirs:
        at_work = _Worker(theirs, replace(cpu_device(), l2_bytes=1 << 16), None)
        operands = at_work._operands_of(LAYER)
        weight = weakref.ref(operands.weight.q)
        for _ in range(2):
            with contextlib.suppress(ValueError):
                at_work._peer_of(operands)
        del operands
        gc.disable()
        try:
            at_work._operands_of(Layer(n=64, k=128, group_size=64))
            assert weight() is None
        finally:
            gc.enable()


def test_a_worker_that_is_killed_is_replaced(executor, fifo):
    killer = threading.Thread(target=lambda: os.kill(int(fifo.read_text()), signal.SIGKILL), daemon=True)
    killer.start()
    tuned = tuned_with(executor, crashing.WAIT)
    killer.join()
    (failed,) = (trial for trial in tuned.trials if trial.status == "failed")
    assert failed.config == config_of(crashing.WAIT)
    assert "signal 9 (SIGKILL)" in failed.error
    assert tuned.record.config == GOOD


def test_a_signal_to_every_process_is_no_crash(executor, fifo):
    def signal_both():
        pid = int(fifo.read_text())
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)

    threading.Thread(target=signal_both, daemon=True).start()
    (failed,) = (trial for trial in tuned_with(executor, crashing.WAIT).trials if trial.status == "failed")
    assert failed.error.startswith("it did not end within")


FORGETFUL = """
from autotune.values.device import cpu_device
from autotune.executors.local import LocalExecutor
if __name__ == "__main__":
    executor = LocalExecutor(cpu_device(), allow_busy=True)
    executor.start()
    executor._worker.wait_ready(200)
    print(executor.worker_pid)
"""


def test_who_forgets_to_close_an_executor_ends_all_the_same(tmp_path):
    path = tmp_path / "forgetful.py"
    path.write_text(FORGETFUL)
    ended = subprocess.run((sys.executable, path), capture_output=True, text=True, check=True, timeout=240)
    with pytest.raises(ProcessLookupError):
        os.kill(int(ended.stdout), 0)


def test_a_default_that_crashes_leaves_a_note(executor):
    tuned = executor.tune(PROBLEM, [config_of(crashing.ABORT), GOOD], {})
    assert tuned.record.config == GOOD
    assert "default config crashing:act=2,calls=1 did not pass: it crashed its worker" in tuned.note


def test_nothing_that_passes_is_told(executor):
    tuned = executor.tune(PROBLEM, [config_of(crashing.ABORT), config_of(crashing.EXIT)], {})
    assert tuned.record is None
    assert "exit code 3" in tuned.note
    assert "SIGABRT" in tuned.note


def test_a_sweep_goes_on_after_crashes(executor, store, monkeypatch):
    monkeypatch.setattr(crashing.Crashing, "acts", (crashing.SEGFAULT, crashing.NOTHING, crashing.EXIT))
    problems = [Problem(LAYER, m) for m in (1, 2)]
    outcomes = list(sweep(problems, store, [executor]))
    assert [outcome.record.config for outcome in outcomes] == [GOOD, GOOD]
    assert [outcome.failed for outcome in outcomes] == [2, 2]
    for problem in problems:
        stored = {trial.config["act"]: trial.error for trial in store.trials(problem, cpu_device())}
        assert "SIGSEGV" in stored[crashing.SEGFAULT]
        assert "exit code 3" in stored[crashing.EXIT]


def test_operands_that_do_not_fit_leave_a_note_and_the_worker_alive(executor):
    tuned = tuned_with(executor, problem=Problem(Layer(n=1 << 40, k=1024), 1))
    assert tuned.record is None
    assert tuned.note.startswith("its operands cannot be made: ")
    before = executor.worker_pid
    assert tuned_with(executor).record.config == GOOD
    assert executor.worker_pid == before


def test_a_problem_that_dies_outside_of_configs_is_given_up():
    with LocalExecutor(cpu_device(), LIMIT_S, crashing.work_without_operands) as executor:
        tuned = tuned_with(executor)
    assert tuned.record is None
    assert tuned.note == "given up, outside of any config: it ended its worker with exit code 4"


def test_a_worker_that_does_not_start_is_an_error():
    with (
        LocalExecutor(cpu_device(), LIMIT_S, crashing.work_without_start) as executor,
        pytest.raises(DeviceError, match=r"no worker starts on .*: it ended its worker with exit code 5"),
    ):
        tuned_with(executor)


def test_a_family_that_crashes_again_and_again_is_given_up(executor):
    many = [Config.of("crashing", act=crashing.BUG, calls=calls) for calls in range(1, 13)]
    tuned = executor.tune(PROBLEM, [*many, GOOD], {})
    errors = [trial.error for trial in tuned.trials]
    assert sum("ZeroDivisionError" in error for error in errors) == 10
    assert errors[-1] == "not tried: 10 configs of crashing had crashed"


def test_the_worker_lives_from_problem_to_problem_and_ends_with_its_executor(executor):
    tuned_with(executor)
    pid = executor.worker_pid
    tuned_with(executor, problem=Problem(LAYER, 2))
    assert executor.worker_pid == pid
    executor.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_executor_that_was_interrupted_can_be_used_again(executor, fifo):
    def interrupt():
        fifo.read_text()
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        tuned_with(executor, crashing.WAIT)
    assert executor.worker_pid is None
    assert tuned_with(executor, problem=Problem(LAYER, 2)).record.problem == Problem(LAYER, 2)
