"""What goes wrong around a daemon: databases that go away, leases that are lost, jobs that cannot be done."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import threading

import crashing
import pytest
from command_line import autotune
from daemons import CRASHING, LAYER, LIMIT_S, PROBLEM, add, command_line, job, special
from databases import query

from autotune.daemon.link import Link
from autotune.daemon.serving import Serving
from autotune.daemon.settings import Settings
from autotune.daemon.stop import Stop
from autotune.executors.local import LocalExecutor
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.device import cpu_device
from autotune.values.errors import DeviceError
from autotune.values.layer import Problem

PASSES = (crashing.NOTHING,)
WAIT = (crashing.NOTHING, crashing.WAIT)


@pytest.fixture
def db(tmp_path):
    return tmp_path / "here.db"


def cancel(url) -> None:
    with Store.open(str(url)) as store:
        assert Queue(store).cancel([1]) == 1


def test_a_lost_lease_ends_the_tuning(tmp_path, db, fifo):
    add(db, source_hash=CRASHING)
    with special(tmp_path, WAIT) as daemon:
        fifo.read_text()
        cancel(db)
        assert "discarded" in daemon.until("lost")["reason"]
        assert daemon.stop() == 0
    assert job(db).state == "cancelled"
    assert query(str(db), "SELECT * FROM trial") == []


def test_a_result_whose_lease_was_lost_is_discarded(tmp_path, db):
    add(db, PROBLEM, Problem(LAYER, 2), source_hash=CRASHING)
    with special(tmp_path, PASSES, once=True, beat_s=1000.0) as daemon:
        daemon.until("claim")
        cancel(db)
        assert "discarded" in daemon.until("lost")["reason"]
        assert daemon.until("done")["job"] == 2
        assert daemon.end() == 0
    assert {each["m"] for each in query(str(db), "SELECT m FROM trial")} == {2}


def test_a_lease_is_kept_while_a_job_runs(tmp_path, db, fifo):
    add(db, source_hash=CRASHING)
    with special(tmp_path, WAIT, grace_s=0.0) as daemon:
        fifo.read_text()
        first = job(db).lease_until
        while daemon.process.poll() is None and job(db).lease_until == first:
            pass
        assert job(db).lease_until > first
        assert daemon.stop() == 0


def test_a_file_that_was_moved_away_is_waited_for(tmp_path, db):
    add(db, source_hash=CRASHING)
    with special(tmp_path, PASSES, port=0) as daemon:
        daemon.until("claim")
        db.rename(tmp_path / "elsewhere.db")
        assert "is gone" in daemon.until("database away")["reason"]
        (tmp_path / "elsewhere.db").rename(db)
        daemon.until("database back")
        daemon.until("done")
        assert daemon.stop() == 0
    assert job(db).state == "done"


def test_a_full_disk_keeps_the_result(tmp_path, db):
    add(db, source_hash=CRASHING)
    with special(tmp_path, PASSES) as daemon:
        daemon.until("claim")
        hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (0, hard))
        daemon.until("database away")
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        daemon.until("done")
        assert daemon.stop() == 0
    assert job(db).state == "done"
    assert query(str(db), "PRAGMA integrity_check") == [{"integrity_check": "ok"}]


def test_descriptors_that_run_out_are_waited_for(tmp_path, db):
    with special(tmp_path, PASSES, port=0) as daemon:
        port = int(daemon.until("start")["http"].rpartition(":")[2])
        daemon.until("database here")
        before = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (5, before[1]))
        add(db, source_hash=CRASHING)
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            event = daemon.until("waiting", "database away")
            assert "Too many open files" in event["reason"] or "cannot be opened" in event["reason"]
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, before)
            assert client.recv(100).startswith(b"HTTP/1.0 ")
        assert daemon.stop() == 0
    assert job(db).attempts <= 1
    assert job(db).state in ("queued", "done")


class Lacking(LocalExecutor):
    """An executor of a machine that has no descriptor left for a worker's pipe."""

    def start(self):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_job_that_lacks_a_descriptor_goes_back_to_the_queue(db):
    add(db)
    ended = threading.Event()
    with contextlib.closing(Link(str(db))) as link:
        executor = Lacking(cpu_device(), allow_busy=True)
        loop = Serving("me", executor, None, link, Settings(once=True), Stop())
        loop.start(on_end=ended.set)
        assert ended.wait(LIMIT_S)
    assert "Too many open files" in str(loop.error)
    assert isinstance(loop.error, DeviceError)
    assert (job(db).state, job(db).attempts) == ("queued", 0)


@contextlib.contextmanager
def stopped(postgres):
    postgres.stop()
    try:
        yield
    finally:
        postgres.start()


def test_a_server_that_goes_away_is_waited_for(tmp_path, postgres, server_url):
    add(server_url, source_hash=CRASHING)
    with special(tmp_path, PASSES, db=server_url) as daemon:
        daemon.until("claim")
        with stopped(postgres):
            daemon.until("database away")
        daemon.until("database back")
        daemon.until("done")
        assert daemon.stop() == 0
    assert job(server_url).state == "done"


def test_a_server_that_is_away_at_the_start_is_waited_for(tmp_path, postgres, server_url):
    add(server_url, source_hash=CRASHING)
    with contextlib.ExitStack() as outage:
        outage.enter_context(stopped(postgres))
        with special(tmp_path, PASSES, db=server_url, once=True) as daemon:
            daemon.until("database away")
            outage.close()
            daemon.until("done")
            assert daemon.end() == 0


def test_a_daemon_ends_while_its_server_is_away(tmp_path, postgres, server_url):
    with stopped(postgres), special(tmp_path, PASSES, db=server_url) as daemon:
        daemon.until("database away")
        assert daemon.stop() == 0


def test_a_newer_schema_is_told_in_one_line(tmp_path, db):
    add(db)
    query(str(db), "UPDATE alembic_version SET version_num = '9999'")
    ended = autotune("daemon", "--device", "cpu", "--db", str(db), "--port", "0", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"error: database {db} has schema revision 9999, made by")


def test_a_schema_that_was_upgraded_meanwhile_ends_the_daemon(tmp_path, db):
    with command_line(tmp_path, "--port", "0") as daemon:
        daemon.until("database here")
        query(str(db), "UPDATE alembic_version SET version_num = '9999'")
        assert daemon.end() == 1
    assert "error: database" in daemon.lines[-1]
    assert "made by a newer autotune" in daemon.lines[-1]


def test_a_job_that_no_family_supports_is_parked(tmp_path, db):
    add(db, source_hash=CRASHING)
    with special(tmp_path, (), once=True) as daemon:
        daemon.until("parked")
        assert daemon.end() == 0
    expected = f"no kernel family on {cpu_device().name} can do {PROBLEM}"
    assert (job(db).state, job(db).reason) == ("parked", expected)


def test_configs_that_crash_fail_and_the_job_is_done(tmp_path, db):
    add(db, source_hash=CRASHING)
    with special(tmp_path, (crashing.SEGFAULT, crashing.NOTHING), once=True) as daemon:
        daemon.until("done")
        assert daemon.end() == 0
    statuses = [each["status"] for each in query(str(db), "SELECT status FROM trial")]
    assert statuses.count("failed") == 1


def test_a_device_that_cannot_be_used_is_no_fault_of_the_job(tmp_path, db):
    add(db, source_hash=CRASHING)
    with special(tmp_path, PASSES, entries=("work_without_start",)) as daemon:
        assert "no worker starts" in daemon.until("given back")["reason"]
        assert "no worker starts" in daemon.until("waiting")["reason"]
        assert daemon.stop() == 0
    assert (job(db).state, job(db).attempts) == ("queued", 0)


def test_what_a_lost_device_was_at_is_done_by_another(tmp_path, db):
    add(db, *(Problem(LAYER, m) for m in (1, 2, 4)), source_hash=CRASHING)
    with special(tmp_path, PASSES, entries=("work_without_start", "work")) as daemon:
        events = []
        while events.count("done") < 3:
            events.append(daemon.until("given back", "done")["event"])
        assert "given back" in events
        assert daemon.stop() == 0
    assert {job(db, number).state for number in (1, 2, 3)} == {"done"}
    assert len({row["name"] for row in query(str(db), "SELECT name FROM worker")}) == 2


def test_one_pass_without_a_device_is_an_error(tmp_path, db):
    add(db, source_hash=CRASHING)
    with special(tmp_path, PASSES, entries=("work_without_start",), once=True) as daemon:
        assert daemon.end() == 1
    assert "no worker starts" in daemon.lines[-1]


def test_where_nothing_passes_the_job_fails_with_the_reason(tmp_path, db):
    add(db, source_hash=CRASHING)
    with special(tmp_path, PASSES, entries=("work_without_operands",), once=True) as daemon:
        assert "exit code 4" in daemon.until("failed")["reason"]
        assert daemon.end() == 0
    assert job(db).state == "queued"
    assert "exit code 4" in job(db).reason
