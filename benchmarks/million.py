"""A database of a million trials and a million finished jobs: how long do look-ups and claims take?

    python benchmarks/million.py

Four device models with 25,012 records between them, 40 trials each, on SQLite and on PostgreSQL. A model load
reads a SQLite file only.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from postgres import MANY, server
from store_samples import A100, ENVIRONMENT, H100, H200

from autotune.families import registry
from autotune.records.lookup import Lookup
from autotune.store.queue import Queue
from autotune.store.rows import problem_row, record_row, trial_row
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import COARSE, Layer, Problem
from autotune.values.record import Record, Trial

DEVICES = (H200, H100, A100, replace(A100, name="NVIDIA L4", arch="sm_89"))
SOURCES = {family.name: family.source_hash() for family in registry.families_of(H200)}
PROBLEMS = [Problem(Layer(64 * n, 4096), m) for n in range(1, 482) for m in COARSE]
TRIALS = 40
CALLS = 2_000


def trials_of(sweep: int, problem: Problem) -> Iterator[dict[str, Any]]:
    for split_k in range(1, TRIALS + 1):
        config = Config.of("mma", tile_m=16, split_k=split_k)
        row = trial_row(Trial(problem, config, "ok", 5.0, 4.9, 5.1, (5.0,) * 25))
        yield {"sweep_id": sweep} | row


def record_of(sweep: int, device: Device, problem: Problem) -> dict[str, Any]:
    config = registry.default_config(problem, device)
    times = {"median_us": 5.0, "low_us": 4.9, "high_us": 5.1, "default_us": 6.0}
    record = Record(
        problem,
        device.name,
        device.arch,
        config,
        default_config=config,
        source_hash=registry.kernel_hash(config, problem, device),
        created_at="2026-01-01T00:00:00+00:00",
        **times,
    )
    row = record_row(record)
    del row["evidence"]
    # Each device has one sweep here, so that the numbers of the two are the same.
    return row | {"device_id": sweep, "environment_id": 1}


def done_jobs() -> Iterator[dict[str, Any]]:
    done = {"state": "done", "attempts": 1, "priority": 1.0, "worker": "w", "not_before": 0, "created_at": 0}
    for number in range(TRIALS):
        for device_id in range(1, 1 + len(DEVICES)):
            where = {"device_id": device_id, "source_hash": f"source {number}"}
            for problem in PROBLEMS:
                yield problem_row(problem) | where | done


def load(url: str, table: str, rows: Iterable[dict[str, Any]]) -> None:
    """Append the rows, which have the same columns, as fast as the database can."""
    rows = iter(rows)
    first = next(rows)
    names = ", ".join(first)
    values = (tuple(row.values()) for each in ([first], rows) for row in each)
    if "://" not in url:
        with sqlite3.connect(url) as connection:
            connection.executemany(
                f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(first))})", values
            )
        connection.close()
        return
    with (
        psycopg.connect(url.replace("+psycopg", "")) as server_connection,
        server_connection.cursor() as cursor,
    ):
        with cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
            for row in values:
                copy.write_row(row)
        # A server does this by itself within minutes.
        cursor.execute(f"ANALYZE {table}")


def fill(url: str) -> None:
    with Store.open(url) as store:
        environment = replace(ENVIRONMENT, sources=SOURCES)
        sweeps = {store.begin_sweep(device, environment, {}): device for device in DEVICES}
        Queue(store).add([(problem, random.random()) for problem in PROBLEMS], *here())
    load(url, "trial", (row for sweep in sweeps for each in PROBLEMS for row in trials_of(sweep, each)))
    load(
        url,
        "record",
        (record_of(sweep, its, each) for sweep, its in sweeps.items() for each in PROBLEMS),
    )
    load(url, "job", done_jobs())


def here() -> tuple[str, str, str]:
    return H200.name, H200.arch, "running sources"


def timed(calls: Iterable[Callable[[], object]]) -> list[float]:
    """Milliseconds of each call; it must answer with something."""
    found = []
    for call in calls:
        begin = time.perf_counter()
        answer = call()
        found.append(1e3 * (time.perf_counter() - begin))
        assert answer
    return found


def claims(url: str, count: int, pause_s: float) -> list[float]:
    found = []
    with Store.open(url) as store:
        queue = Queue(store)
        for _ in range(count):
            time.sleep(pause_s * random.uniform(0.5, 1.5))
            found += timed([lambda: queue.claim(*here(), "w", 600.0)])
    return found


def claims_of_eight(url: str, pause_s: float) -> list[float]:
    with ProcessPoolExecutor(8, mp_context=get_context("fork")) as pool:
        found = pool.map(claims, [url] * 8, [CALLS // 8] * 8, [pause_s] * 8)
        return [claim_ms for its in found for claim_ms in its]


def show(what: str, found: list[float]) -> None:
    found = sorted(found)
    p50, p99 = (found[int(len(found) * share)] for share in (0.5, 0.99))
    print(f"| {what} | {len(found)} | {p50:.2f} ms | {p99:.2f} ms |", flush=True)


def measure(name: str, url: str) -> None:
    begin = time.monotonic()
    fill(url)
    print(f"{name}, filled in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    with Store.open(url) as store:
        chosen = random.sample(PROBLEMS, CALLS)
        show(f"{name}: a problem's records", timed((lambda p=p: store.records(H200, p)) for p in chosen))
        show(f"{name}: a problem's trials", timed((lambda p=p: store.attempts(p, H200)) for p in chosen))
        show(f"{name}: jobs by state", timed([lambda: Queue(store).counts()] * 20))
    show(f"{name}: claim, one process", claims(url, CALLS, 0.0))
    show(f"{name}: claim, eight processes, ten times a second each", claims_of_eight(url, 0.1))
    show(f"{name}: claim, eight processes that do nothing else", claims_of_eight(url, 0.0))


def load_model(path: str) -> None:
    """What a model load asks: a layer's first answer reads its records, or those of near layers."""
    known = Lookup(H200, path)
    layers = sorted({problem.layer for problem in PROBLEMS})
    shown = random.sample(layers, len(layers))
    show(
        "Model load: a layer's first answer", timed((lambda p=p: known.answer(Problem(p, 1))) for p in shown)
    )
    chosen = random.sample(PROBLEMS, CALLS)
    show("Model load: each further answer", timed((lambda p=p: known.answer(p)) for p in chosen))
    near = [replace(layer, k=4224) for layer in shown]
    show(
        "Model load: a near layer's first answer",
        timed((lambda p=p: known.answer(Problem(p, 1))) for p in near),
    )


def main() -> None:
    print("| what | calls | p50 | p99 |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/million.db"
        measure("SQLite", path)
        load_model(path)
    with server(MANY) as postgres:
        measure("PostgreSQL", postgres.url(postgres.create()))


if __name__ == "__main__":
    main()
