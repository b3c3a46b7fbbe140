"""Several executors on one list of problems: who gets what, what is lost and what is not."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import threading

import counted
import crashing
import pytest

from autotune.executors.local import LocalExecutor, local_executors
from autotune.families import registry
from autotune.search.assignment import Assignment
from autotune.search.executor import by_model
from autotune.search.sweep import sweep
from autotune.store.store import Store
from autotune.values.device import cpu_device
from autotune.values.errors import DeviceError
from autotune.values.layer import Layer, Problem

SMALL, MIDDLE, LARGE = (Layer(n=n, k=256, group_size=64) for n in (64, 128, 192))
PROBLEMS = [Problem(layer, m) for layer in (SMALL, MIDDLE, LARGE) for m in (1, 2, 4)]


class Watched(LocalExecutor):
    """An executor that knows what it was given, and does with the first problem what a test wants."""

    def __init__(self, *arguments, at_first=lambda: None, **more):
        super().__init__(*arguments, **more)
        self.given, self.at_first = [], at_first

    def tune(self, problem, *arguments):
        self.given.append(problem)
        if len(self.given) == 1:
            self.at_first()
        return super().tune(problem, *arguments)


@pytest.fixture
def executor(monkeypatch):
    """Makes executors that know the families of `counted`, and closes them."""
    monkeypatch.setattr(registry, "families", counted.families)
    made = []

    def make(entry=counted.work, at_first=lambda: None):
        made.append(Watched(cpu_device(), entry=entry, allow_busy=True, at_first=at_first))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def store(tmp_path):
    with Store.open(str(tmp_path / "fleet.db")) as opened:
        yield opened


def stored(store):
    return [record.problem for record in store.records(cpu_device())]


def test_two_executors_share_the_problems(store, executor):
    meeting = threading.Barrier(2, timeout=120)
    two = [executor(at_first=meeting.wait) for _ in range(2)]
    outcomes = list(sweep(PROBLEMS, store, two))
    assert sorted(outcome.problem for outcome in outcomes) == sorted(PROBLEMS) == stored(store)
    assert sorted(two[0].given + two[1].given) == sorted(PROBLEMS)
    assert {two[0].given[0], two[1].given[0]} == {Problem(LARGE, 1), Problem(MIDDLE, 1)}
    for problem in PROBLEMS:
        times = collections.Counter(trial.config for trial in store.trials(problem, cpu_device()))
        assert len(times) == len(registry.space(problem, cpu_device()))
        assert set(times.values()) == {1}


def test_what_a_lost_executor_had_goes_to_the_others(store, executor, caplog):
    meeting = threading.Barrier(2, timeout=120)
    lost = executor(entry=crashing.work_without_start, at_first=meeting.wait)
    good = executor(at_first=meeting.wait)
    outcomes = list(sweep(PROBLEMS, store, [lost, good]))
    assert len(outcomes) == len(PROBLEMS)
    assert len(lost.given) == 1
    assert sorted(good.given) == sorted(PROBLEMS) == stored(store)
    assert "exit code 5" in caplog.text
    assert "the others go on" in caplog.text


def test_when_all_are_lost_what_was_stored_stays(store, executor):
    lost = [executor(entry=crashing.work_without_start) for _ in range(2)]
    list(sweep(PROBLEMS[:1], store, [executor()]))
    with pytest.raises(DeviceError, match=r"no worker starts on .*: it ended its worker with exit code 5"):
        list(sweep(PROBLEMS, store, lost))
    assert stored(store) == PROBLEMS[:1]


def test_a_closed_sweep_ends_every_worker_and_the_executors_can_be_used_again(store, executor):
    two = [executor(), executor()]
    running = sweep(PROBLEMS, store, two)
    first = next(running).problem
    running.close()
    assert stored(store) == [first]
    assert [each.worker_pid for each in two] == [None, None]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tune")]
    assert len(list(sweep(PROBLEMS[:2], store, two))) == 2


def test_a_worker_outlives_the_sweep_that_had_it_started(store, executor):
    one = executor()
    list(sweep(PROBLEMS[:1], store, [one]))
    before = one.worker_pid
    list(sweep(PROBLEMS[:2], store, [one]))
    assert one.worker_pid == before


def test_who_is_cancelled_while_tuning_raises_until_it_is_closed(executor, monkeypatch, tmp_path):
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    monkeypatch.setenv(crashing.PID_FIFO, str(fifo))
    monkeypatch.setattr(registry, "families", crashing.families)
    one = executor(entry=crashing.work)

    def cancel():
        fifo.read_text()
        one.cancel()

    threading.Thread(target=cancel, daemon=True).start()
    candidates = [crashing.config_of(crashing.NOTHING, calls=50), crashing.config_of(crashing.WAIT)]
    for _ in range(2):
        with pytest.raises(DeviceError, match="was cancelled"):
            one.tune(PROBLEMS[0], candidates, {})
    one.close()
    assert one.tune(PROBLEMS[0], candidates[:1], {}).record is not None


def test_an_interrupt_ends_both_workers(store, executor):
    pids = []

    def interrupt():
        pids.extend(each.worker_pid for each in two if each.worker_pid)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    two = [executor(), executor(at_first=interrupt)]
    with contextlib.closing(sweep(PROBLEMS, store, two)) as running, pytest.raises(KeyboardInterrupt):
        collections.deque(running, maxlen=0)
    assert [each.worker_pid for each in two] == [None, None]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def takes(assignment, who, count=1):
    return [assignment.take(who) for _ in range(count)]


def test_a_thread_stays_with_its_layer_then_takes_a_new_one_then_helps():
    assignment = Assignment(PROBLEMS, 2)
    for problem in PROBLEMS:
        assignment.add(problem)
    assert takes(assignment, 0) == [Problem(LARGE, 1)]
    assert takes(assignment, 1, 3) == [Problem(MIDDLE, m) for m in (1, 2, 4)]
    assert takes(assignment, 1, 3) == [Problem(SMALL, m) for m in (4, 2, 1)]
    assert takes(assignment, 1) == [Problem(LARGE, 4)]
    assert takes(assignment, 0) == [Problem(LARGE, 2)]


def test_only_problems_whose_kernels_are_there_are_taken():
    assignment = Assignment(PROBLEMS, 1)
    assignment.add(Problem(SMALL, 4))
    assert takes(assignment, 0) == [Problem(SMALL, 4)]
    found = []
    waiting = threading.Thread(target=lambda: found.append(assignment.take(0)))
    waiting.start()
    assignment.add(Problem(SMALL, 1))
    waiting.join()
    assert found == [Problem(SMALL, 1)]
    assignment.add(Problem(LARGE, 1))
    assignment.add(Problem(SMALL, 2))
    assert takes(assignment, 0, 2) == [Problem(SMALL, 2), Problem(LARGE, 1)]


def test_who_helps_goes_to_a_layer_that_nobody_has_as_soon_as_there_is_one():
    assignment = Assignment(PROBLEMS, 2)
    for m in (1, 2, 4):
        assignment.add(Problem(SMALL, m))
    assert takes(assignment, 0) == [Problem(SMALL, 4)]
    assert takes(assignment, 1) == [Problem(SMALL, 2)]
    assignment.add(Problem(LARGE, 1))
    assert takes(assignment, 1) == [Problem(LARGE, 1)]
    assert takes(assignment, 0) == [Problem(SMALL, 1)]


def test_one_thread_takes_few_tokens_first_to_the_end():
    assignment = Assignment(PROBLEMS, 1)
    for problem in PROBLEMS:
        assignment.add(problem)
    order = [Problem(layer, m) for layer in (LARGE, MIDDLE, SMALL) for m in (1, 2, 4)]
    assert takes(assignment, 0, len(PROBLEMS)) == order


def test_a_thread_waits_for_what_another_one_may_give_back():
    assignment = Assignment(PROBLEMS[:1], 2)
    assignment.add(PROBLEMS[0])
    (problem,) = takes(assignment, 0)
    found = []
    waiting = threading.Thread(target=lambda: found.append(assignment.take(1)))
    waiting.start()
    assignment.leave(0, problem)
    waiting.join()
    assert found == [problem]
    assert assignment.threads == 1
    assignment.finish()
    assert assignment.take(1) is None


def test_devices_by_name():
    (one,) = local_executors("cpu, cpu")
    assert one.device == cpu_device()
    with pytest.raises(DeviceError, match="device 'gpu' is not auto, cpu, cuda or cuda:N"):
        local_executors("cpu,gpu")


def test_executors_of_a_model_belong_together():
    two = [*local_executors("cpu"), *local_executors("cpu")]
    assert by_model(two) == [two]
