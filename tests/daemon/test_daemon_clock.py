"""A daemon whose machine's clock jumps by hours: leases go by the clock of the database's server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
from datetime import datetime, timedelta, timezone
from pathlib import Path

import crashing
import pytest
from daemons import CRASHING, PROBLEM, add, job, special
from databases import query
from places import SUPPORT

from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.device import cpu_device

WAIT = (crashing.NOTHING, crashing.WAIT)
LEASE_S = 60.0
HOURS = [-36_000, 36_000]

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler makes the clock that jumps"),
    pytest.mark.skipif(
        not sysconfig.get_config_var("HAVE_SEM_CLOCKWAIT"),
        reason="this Python waits by the wall clock",
    ),
]


class Clock:
    """The wall clock of the processes that get `env`."""

    def __init__(self, folder: Path) -> None:
        source, library = SUPPORT / "clock_jump.c", folder / "clock_jump.so"
        subprocess.run(("cc", "-shared", "-fPIC", "-o", library, source, "-ldl"), check=True)
        self._file = folder / "jump"
        self.env = {"LD_PRELOAD": str(library), "AUTOTUNE_TEST_JUMP": str(self._file)}

    def jump(self, seconds: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self._file)


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path)


def claim(url):
    with Store.open(url) as store:
        device = cpu_device()
        return Queue(store).claim(device.name, device.arch, CRASHING, "another", LEASE_S)


def lease_s(url) -> float:
    """Seconds that the job's lease has left."""
    with Store.open(url) as store:
        queue = Queue(store)
        return queue.jobs()[0].lease_until - queue.clock()


@pytest.mark.parametrize("seconds", HOURS)
def test_a_worker_whose_clock_jumps_keeps_its_lease_and_no_longer_than_others(
    tmp_path, server_url, clock, fifo, seconds
):
    add(server_url, source_hash=CRASHING)
    with special(tmp_path, WAIT, db=server_url, lease_s=LEASE_S, env=clock.env) as daemon:
        pid = int(fifo.read_text())
        clock.jump(seconds)
        first = job(server_url).lease_until
        for _ in range(3):
            while daemon.process.poll() is None and job(server_url).lease_until == first:
                pass
            first = job(server_url).lease_until
        assert 0 < lease_s(server_url) <= LEASE_S
        assert claim(server_url) is None
        os.kill(pid, signal.SIGKILL)
        done = daemon.until("done", "lost", "failed")
        assert done["event"] == "done"
        said = datetime.fromisoformat(done["time"]) - datetime.now(timezone.utc)
        assert abs(said - timedelta(seconds=seconds)) < timedelta(hours=1)  # its clock did jump
        assert daemon.stop() == 0
    assert job(server_url).state == "done"


@pytest.mark.parametrize("seconds", HOURS)
def test_a_worker_whose_clock_is_wrong_takes_no_job_of_others_and_every_free_one(
    tmp_path, server_url, clock, seconds
):
    add(server_url, PROBLEM, source_hash=CRASHING)
    assert claim(server_url) is not None
    clock.jump(seconds)
    arguments = {"db": server_url, "once": True, "env": clock.env}
    with special(tmp_path, (crashing.NOTHING,), **arguments) as daemon:
        assert daemon.end() == 0
    assert (job(server_url).state, job(server_url).worker) == ("running", "another")
    query(server_url, "UPDATE job SET lease_until = lease_until - 100")
    with special(tmp_path, (crashing.NOTHING,), **arguments) as daemon:
        daemon.until("done")
        assert daemon.end() == 0


@pytest.mark.parametrize("seconds", HOURS)
def test_a_worker_whose_clock_jumps_notices_that_its_lease_was_lost(
    tmp_path, server_url, clock, fifo, seconds
):
    add(server_url, source_hash=CRASHING)
    with special(tmp_path, WAIT, db=server_url, beat_s=2.0, env=clock.env) as daemon:
        fifo.read_text()
        clock.jump(seconds)
        taken = None
        while taken is None:
            query(server_url, "UPDATE job SET lease_until = lease_until - 100")
            taken = claim(server_url)
        assert "discarded" in daemon.until("lost", "done")["reason"]
        assert daemon.stop() == 0
    assert (job(server_url).worker, job(server_url).attempts) == ("another", 2)
