"""The daemon tunes what is queued, stores it, and ends as it is told to."""

from __future__ import annotations

import json
import os
import signal

import crashing
import pytest
from command_line import autotune
from daemons import CRASHING, LAYER, LIMIT_S, PROBLEM, add, command_line, job, special
from databases import query
from real_families import CPU_FAMILY

from autotune.daemon.stop import Signals
from autotune.executors.line import Line
from autotune.records.misses import Miss, append, miss_file
from autotune.search.environment import current_environment
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.device import cpu_device
from autotune.values.job import Worker
from autotune.values.layer import Problem
from autotune.values.locks import device_lock
from autotune.values.record import sources_digest

WAIT = (crashing.NOTHING, crashing.WAIT)


@pytest.fixture
def db(tmp_path):
    return tmp_path / "here.db"


def worker(db) -> Worker:
    with Store.open(str(db)) as store:
        (only,) = Queue(store).workers()
    return only


def expire(db) -> None:
    query(str(db), "UPDATE job SET lease_until = lease_until - 1000 WHERE state = 'running'")


def ends(pid: int) -> bool:
    """Whether the process is gone, or a zombie that its parent has not asked for."""
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_records_of_a_drained_queue_are_found(tmp_path, db):
    add(db, PROBLEM, Problem(LAYER, 2))
    with command_line(tmp_path, "--once", "--port", "0") as daemon:
        first, second = daemon.until("done"), daemon.until("done")
        assert daemon.end() == 0
    assert {first["problem"], second["problem"]} == {str(PROBLEM), str(Problem(LAYER, 2))}
    assert first["config"].startswith(f"{CPU_FAMILY.name}:")
    assert first["gain"] >= 1
    assert first["seconds"] > 0
    shapes = ("--shapes", "n=256,k=256,group_size=64", "--m", "1,2", "--device", "cpu")
    found = autotune("lookup", *shapes, "--db", "here.db", "--require", "exact", "--json", cwd=tmp_path)
    assert [each["config"] for each in json.loads(found.stdout)] == [first["config"], second["config"]]
    assert job(db).state == "done"
    assert {each["status"] for each in query(str(db), "SELECT status FROM sweep")} == {"finished"}
    assert worker(db).state == "stopped"


def test_what_has_a_record_is_done_at_once(tmp_path, db):
    add(db)
    with special(tmp_path, once=True) as daemon:
        assert daemon.end() == 0
    with Store.open(str(db)) as store:
        before = store.trials(PROBLEM, cpu_device())
        Queue(store).retry([1])
    with special(tmp_path, once=True) as daemon:
        assert daemon.until("done")["trials"] == 0
        assert daemon.end() == 0
    with Store.open(str(db)) as store:
        assert store.trials(PROBLEM, cpu_device()) == before


def test_a_miss_becomes_a_record(tmp_path, db):
    device = cpu_device()
    digest = sources_digest(current_environment(device).sources)
    append(miss_file(str(db)), Miss(PROBLEM, device.name, device.arch, digest, "default", 4))
    with special(tmp_path, once=True) as daemon:
        assert daemon.until("misses queued")["jobs"] == 1
        assert daemon.until("done")["problem"] == str(PROBLEM)
        assert daemon.end() == 0


def test_misses_that_cannot_be_taken_stop_nothing(tmp_path, db):
    miss_file(str(db)).mkdir()
    with special(tmp_path, once=True) as daemon:
        assert "misses" in daemon.until("misses stay")["reason"]
        assert daemon.end() == 0


def test_an_idle_daemon_ends_at_once(tmp_path, db):
    with special(tmp_path) as daemon:
        daemon.until("database here")
        assert daemon.stop() == 0
    assert worker(db).state == "stopped"
    with Store.open(str(db)) as store:
        assert store.devices() == [cpu_device()]  # jobs may be queued for it anywhere
    assert json.loads(daemon.lines[-1])["event"] == "stop"


def test_a_job_that_ends_soon_is_finished_first(tmp_path, db):
    add(db, PROBLEM, Problem(LAYER, 2))
    with special(tmp_path, grace_s=LIMIT_S) as daemon:
        daemon.until("claim")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.until("stopping")["signal"] == "SIGTERM"
        daemon.until("done")
        assert daemon.end() == 0
    assert [job(db, number).state for number in (1, 2)] == ["done", "queued"]


def test_a_job_that_does_not_end_is_given_back(tmp_path, db, fifo):
    add(db, source_hash=CRASHING)
    with special(tmp_path, WAIT, grace_s=0.1) as daemon:
        pid = int(fifo.read_text())
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.until("given back")["job"] == 1
        assert daemon.end() == 0
    assert (job(db).state, job(db).attempts) == ("queued", 0)
    assert ends(pid)


def test_a_second_signal_ends_the_grace(tmp_path, db, fifo):
    add(db, source_hash=CRASHING)
    with special(tmp_path, WAIT, grace_s=LIMIT_S) as daemon:
        pid = int(fifo.read_text())
        daemon.process.send_signal(signal.SIGINT)
        daemon.until("stopping")
        assert daemon.end(signal.SIGINT) == 0
    assert ends(pid)
    assert (job(db).state, job(db).attempts) == ("queued", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_workers_too_ends_no_job(tmp_path, db, fifo, number):
    add(db, source_hash=CRASHING)
    with special(tmp_path, WAIT, grace_s=LIMIT_S) as daemon:
        pid = int(fifo.read_text())
        daemon.signal_all(number)
        assert daemon.until("stopping")["signal"] == number.name
        daemon.signal_all(number)
        assert daemon.until("given back", "done", "failed")["event"] == "given back"
        assert daemon.end() == 0
    assert (job(db).state, job(db).attempts) == ("queued", 0)
    assert query(str(db), "SELECT * FROM trial") == []
    assert ends(pid)


def test_a_job_is_finished_although_the_workers_were_told_to_end(tmp_path, db):
    add(db)
    with special(tmp_path, grace_s=LIMIT_S) as daemon:
        daemon.until("claim")
        daemon.signal_all(signal.SIGTERM)
        daemon.until("done")
        assert daemon.end() == 0
    assert {each["status"] for each in query(str(db), "SELECT status FROM trial")} <= {"ok", "pruned"}


def test_a_hangup_that_nohup_had_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.wait(LIMIT_S) == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_job_of_a_killed_daemon_is_done_by_another(tmp_path, db, fifo):
    add(db, source_hash=CRASHING)
    with special(tmp_path, WAIT) as daemon:
        fifo.read_text()
        daemon.end(signal.SIGKILL)
    assert job(db).state == "running"
    with special(tmp_path, (crashing.NOTHING,), once=True) as daemon:
        assert daemon.end() == 0
    assert job(db).state == "running"
    expire(db)
    with special(tmp_path, (crashing.NOTHING,), once=True) as daemon:
        assert "vanished" in daemon.until("claim")["reason"]
        daemon.until("done")
        assert daemon.end() == 0
    assert (job(db).state, job(db).attempts) == ("done", 2)


def test_a_device_has_one_daemon(tmp_path):
    with command_line(tmp_path, "--port", "0") as first:
        first.until("database here")
        second = autotune("daemon", "--device", "cpu", "--db", "here.db", cwd=tmp_path)
        assert second.returncode == 1
        (line,) = second.stderr.splitlines()
        assert line.startswith(f"error: another autotune daemon serves {cpu_device().name} (cpu)")
        assert first.stop() == 0


def test_another_autotune_that_measures_is_waited_for(tmp_path, db):
    add(db)
    with device_lock(cpu_device()):
        daemon = special(tmp_path, once=True)
        with daemon:
            assert "another autotune" in daemon.until("waiting")["reason"]
            assert worker(db).state == "waiting"
            device_lock(cpu_device()).release()
            daemon.until("done")
            assert daemon.end() == 0
        device_lock(cpu_device()).acquire()


def test_who_waits_for_the_device_has_it_after_the_job_and_the_daemon_after_that(tmp_path, db, fifo):
    add(db, PROBLEM, Problem(LAYER, 2), source_hash=CRASHING)
    line = Line(cpu_device())
    with special(tmp_path, WAIT) as daemon:
        pid = int(fifo.read_text())
        assert not line.take(0.0)
        os.kill(pid, signal.SIGKILL)
        daemon.until("done")
        assert "another autotune wants to measure" in daemon.until("claim", "waiting")["reason"]
        assert line.take(LIMIT_S)
        while daemon.process.poll() is None and not line.wanted:
            pass
        line.leave()
        os.kill(int(fifo.read_text()), signal.SIGKILL)
        daemon.until("done")
        assert daemon.stop() == 0


def test_the_device_is_free_when_there_is_nothing_to_do(tmp_path, db):
    add(db)
    with special(tmp_path) as daemon:
        daemon.until("done")
        with device_lock(cpu_device()).acquire(timeout=LIMIT_S):
            assert daemon.stop() == 0


def test_the_budget_of_an_hour_ends(tmp_path, db):
    add(db, PROBLEM, Problem(LAYER, 2))
    with special(tmp_path, budget_s=0.001) as daemon:
        daemon.until("done")
        assert "budget" in daemon.until("waiting")["reason"]
        assert daemon.stop() == 0
    assert job(db, 2).state == "queued"


def test_one_pass_ends_with_its_budget(tmp_path, db):
    add(db, PROBLEM, Problem(LAYER, 2), source_hash=CRASHING)
    with special(tmp_path, (crashing.NOTHING,), once=True, budget_s=0.001) as daemon:
        assert daemon.end() == 0
    assert [job(db, number).state for number in (1, 2)] == ["done", "queued"]
