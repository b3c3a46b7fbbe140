"""Processes drain a queue of jobs, undisturbed and while they are killed: is any job lost, or done twice?

    python benchmarks/drain.py              SQLite with 8 processes, then PostgreSQL with 64
    python benchmarks/drain.py --jobs 1000

Each process claims a job and stores a result of three trials, a record and a cubin, again and again. In the
second run of each, a process chosen at random is killed with SIGKILL and replaced, four times a second, and
PostgreSQL's server is ended as by a power failure and started again, once. Then the database is compared with
what the processes noted. Claims are timed by the processes, waits for the database included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from databases import query
from postgres import MANY, server
from store_samples import ENVIRONMENT, H200, binary, record, trials

from autotune.store.queue import Queue
from autotune.store.rows import PROBLEM_FIELDS
from autotune.store.store import Store
from autotune.values.errors import DatabaseError, LeaseLost
from autotune.values.job import Job
from autotune.values.layer import COARSE, Layer, Problem

HERE = (H200.name, H200.arch, "sources")
LEASE_S = 3.0
KILL_EVERY_S = 0.25
Answer = TypeVar("Answer")
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Drained:
    """What came of a drain; `claims_ms` are of the claims that got a job, `twice` counts results too many."""

    seconds: float
    killed: int
    claims_ms: list[float]
    states: dict[str, int]
    lost: int
    twice: int


def work(url: str, notes: Path) -> None:
    """Do jobs until none is left; a line `job claim_ms` is noted for each that is done."""
    name = f"{os.getpid()}"
    with insist(lambda: Store.open(url)) as store, (notes / name).open("a", buffering=1) as noted:
        queue = Queue(store)
        sweep = insist(lambda: store.begin_sweep(H200, ENVIRONMENT, {}))
        while True:
            begin = time.perf_counter()
            job = insist(lambda: queue.claim(*HERE, name, LEASE_S))
            claim_ms = 1e3 * (time.perf_counter() - begin)
            if job is not None:
                if finish(queue, job, sweep):
                    noted.write(f"{job.id} {claim_ms}\n")
            elif not open_jobs(url):
                return
            else:
                time.sleep(0.1)


def finish(queue: Queue, job: Job, sweep: int) -> bool:
    """Store a result for the job, as often as it takes; False when its lease was lost meanwhile."""
    found = record(m=job.problem.m, layer=job.problem.layer)
    try:
        insist(lambda: queue.complete(job, sweep, trials(found), found, binary(f"unit {job.id}")))
    except LeaseLost:
        return False
    return True


def insist(action: Callable[[], Answer]) -> Answer:
    """The action's answer, when the database gives one."""
    while True:
        try:
            return action()
        except DatabaseError:
            time.sleep(0.1)


def open_jobs(url: str) -> int:
    """How many jobs are queued or running, asked on a connection of its own, which no fork inherits."""
    (row,) = query(url, "SELECT count(*) AS jobs FROM job WHERE state IN ('queued', 'running')")
    return int(row["jobs"])


def drain(url: str, jobs: int, processes: int, crash: Callable[[], None] | None, kill: bool) -> Drained:
    """Let the processes drain so many jobs; `crash` ends the server and starts it again, half way."""
    layers = [Layer(64 * (1 + number), 4096) for number in range(-(-jobs // len(COARSE)))]
    problems = [Problem(layer, m) for layer in layers for m in COARSE][:jobs]
    with Store.open(url) as store:
        Queue(store).add([(problem, random.random()) for problem in problems], *HERE)
    with tempfile.TemporaryDirectory() as folder:
        notes, killed, begin = Path(folder), 0, time.monotonic()
        running = [start(url, notes) for _ in range(processes)]
        while any(process.is_alive() for process in running):
            time.sleep(KILL_EVERY_S)
            left = open_jobs(url)
            if kill and left:
                victim = random.randrange(processes)
                running[victim].kill()
                running[victim].join()
                running[victim] = start(url, notes)
                killed += 1
            if crash is not None and left < jobs / 2:
                crash()
                crash = None
        seconds = time.monotonic() - begin
        noted = [line.split() for path in notes.iterdir() for line in path.read_text().splitlines()]
    states = {
        row["state"]: row["jobs"] for row in query(url, "SELECT state, count(*) AS jobs FROM job GROUP BY 1")
    }
    results = query(url, f"SELECT count(*) AS trials FROM trial GROUP BY {', '.join(PROBLEM_FIELDS)}")
    (records,) = query(url, "SELECT count(*) AS records FROM record")
    repeated = len(noted) - len({number for number, _ in noted})
    assert records["records"] == len(results), "a job's trials and its record are stored together"
    return Drained(
        seconds=seconds,
        killed=killed,
        claims_ms=sorted(float(claim_ms) for _, claim_ms in noted),
        states=states,
        lost=jobs - sum(states.values()) + states.get("done", 0) - len(results),
        twice=repeated + sum(row["trials"] // 3 - 1 for row in results),
    )


def start(url: str, notes: Path) -> BaseProcess:
    process = FORK.Process(target=work, args=(url, notes))
    process.start()
    return process


def show(name: str, jobs: int, drained: Drained) -> None:
    """One line of the table."""
    p50, p99 = (drained.claims_ms[int(len(drained.claims_ms) * share)] for share in (0.5, 0.99))
    print(
        f"| {name} | {drained.killed} | {drained.seconds:.0f} s, {jobs / drained.seconds:.0f}/s "
        f"| {p50:.1f} ms | {p99:.1f} ms | {drained.states} | {drained.lost} | {drained.twice} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=10_000)
    jobs = parser.parse_args().jobs
    print("| database | killed | drained in | claim p50 | claim p99 | states | lost | done twice |")
    print("|---|---|---|---|---|---|---|---|")
    for kill in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            show("SQLite, 8 processes", jobs, drain(f"{folder}/drain.db", jobs, 8, None, kill))
    with server(MANY) as postgres:
        for kill in (False, True):
            name = postgres.create()

            def crash() -> None:
                postgres.stop()
                postgres.start()

            drained = drain(postgres.url(name), jobs, 64, crash if kill else None, kill)
            show("PostgreSQL, 64 processes" + (", restarted" if kill else ""), jobs, drained)


if __name__ == "__main__":
    main()
