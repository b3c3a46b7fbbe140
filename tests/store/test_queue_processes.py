"""The queue among processes that add, claim and die at once, and on a server that goes away."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter

import pytest
from databases import query, rows
from places import ROOT, SUPPORT
from postgres import Server
from store_samples import ENVIRONMENT, H200, LAYER, record, trials

from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.errors import DatabaseError
from autotune.values.layer import Problem

HERE = (H200.name, H200.arch, "sources")
JOBS = 200
START = f"""
import sys
sys.path[:0] = [{str(SUPPORT)!r}, {str(ROOT)!r}]
from store_samples import *
from autotune.store.queue import Queue
from autotune.store.store import Store
database, me, here = sys.argv[1], sys.argv[2], ({", ".join(map(repr, HERE))})
print("ready", flush=True)
sys.stdin.readline()
with Store.open(database) as store:
    queue = Queue(store)
"""

ADDER = (
    START
    + f"""
    order = range(1, {JOBS + 1}) if int(me) % 2 else range({JOBS}, 0, -1)
    print(sum(queue.add([(Problem(LAYER, m), float(me)) for m in order][i::4], *here) for i in range(4)))
"""
)

DRAINER = (
    START
    + """
    sweep = store.begin_sweep(H200, ENVIRONMENT, {})
    while job := queue.claim(*here, me, 60.0):
        found = record(m=job.problem.m)
        queue.complete(job, sweep, trials(found), found, binary(str(job.id)))
        print(job.id)
"""
)

CLAIMER = (
    START
    + """
    print(queue.claim(*here, me, 60.0).id, flush=True)
    sys.stdin.readline()
"""
)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def all_together(script: str, url: str, count: int) -> list[list[str]]:
    """What each of so many processes printed."""
    processes = [start(script, url, number) for number in range(count)]
    for process in processes:
        go(process)
    outputs = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return outputs


@pytest.fixture
def filled(url: str) -> str:
    """A database with `JOBS` jobs."""
    with Store.open(url) as store:
        Queue(store).add([(Problem(LAYER, m), 1.0) for m in range(1, JOBS + 1)], *HERE)
    return url


def test_processes_that_add_the_same_problems_add_each_once(url):
    Store.open(url).close()
    counts = all_together(ADDER, url, 4)
    assert sum(int(count) for (count,) in counts) == JOBS
    with Store.open(url) as store:
        assert Counter(each.priority for each in Queue(store).jobs()) == {3.0: JOBS}


def test_eight_processes_do_each_job_once(filled):
    done = [int(number) for numbers in all_together(DRAINER, filled, 8) for number in numbers]
    assert len(done) == JOBS
    with Store.open(filled) as store:
        assert {job.id for job in Queue(store).jobs("done")} == set(done)
        assert [each.problem.m for each in store.records()] == list(range(1, JOBS + 1))
    assert len(rows(filled, "trial")) == 3 * JOBS


def test_the_job_of_a_killed_process_goes_to_another(filled):
    victim = start(CLAIMER, filled, "victim")
    go(victim)
    taken = int(victim.stdout.readline())
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    victim.communicate()
    with Store.open(filled) as store:
        queue = Queue(store)
        assert queue.claim(*HERE, "me", 60.0).id != taken
        query(filled, "UPDATE job SET lease_until = lease_until - 1000 WHERE id = :id", id=taken)
        again = queue.claim(*HERE, "me", 60.0)
        assert (again.id, again.attempts) == (taken, 2)


def test_a_server_that_goes_away_costs_an_error_and_nothing_else(postgres: Server, template: str):
    name = postgres.create(template)
    with Store.open(postgres.url(name)) as store:
        queue = Queue(store)
        queue.add([(Problem(LAYER, m), 1.0) for m in (1, 2)], *HERE)
        job, sweep = queue.claim(*HERE, "me", 60.0), store.begin_sweep(H200, ENVIRONMENT, {})
        postgres.stop()
        try:
            for _ in range(2):
                with pytest.raises(DatabaseError, match=r"^database postgresql\+psycopg://[^\n]*$"):
                    queue.complete(job, sweep, trials(record()), record(), None)
        finally:
            postgres.start()
        queue.complete(job, sweep, trials(record()), record(), None)
        assert store.records() == [record()]
        assert queue.counts() == {"queued": 1, "done": 1}

        postgres.stop()
        postgres.start()
        with pytest.raises(DatabaseError, match=r"^database postgresql\+psycopg://[^\n]*$"):
            queue.claim(*HERE, "me", 60.0)
        assert queue.claim(*HERE, "me", 60.0).problem.m == 2
    postgres.drop(name)
