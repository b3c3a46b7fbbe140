"""How long the pages of `autotune serve` take at the server, over the database of `million.py`.

    python benchmarks/pages.py

The time of a page is that of all but HTTP: a transaction, look-ups, and the HTML. Each call is of another
device, layer, page or colour.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from million import DEVICES, PROBLEMS, fill
from postgres import MANY, server

from autotune.store.store import Store
from autotune.values.device import Device
from autotune.web.coverage import METRICS
from autotune.web.query import Query, device_key
from autotune.web.site import Site

CALLS = 100
IMPORTS = (101, 161)


def device() -> tuple[str, str]:
    return "device", device_key(random.choice(DEVICES))


def set_of(kind: str) -> str:
    place = random.randrange(len(DEVICES))
    return f"device:{device_key(DEVICES[place])}" if kind == "device" else f"{kind}:{place + 1}"


def coverage() -> list[tuple[str, str]]:
    number, metric = random.randint(1, 25), random.choice(list(METRICS))
    return [device(), ("page", str(number)), ("metric", metric)]


def side_by_side() -> list[tuple[str, str]]:
    both: list[Device] = random.sample(DEVICES, 2)
    return [*(("device", device_key(each)) for each in both), ("page", str(random.randint(1, 25)))]


def problem() -> list[tuple[str, str]]:
    chosen = random.choice(PROBLEMS)
    return [device(), ("layer", str(chosen.layer)), ("m", str(chosen.m))]


def compare_devices() -> list[tuple[str, str]]:
    return [("a", set_of("device")), ("b", set_of("device")), ("page", str(random.randint(1, 20)))]


def compare_sweeps() -> list[tuple[str, str]]:
    return [("a", set_of("sweep")), ("b", set_of("sweep")), ("page", str(random.randint(1, 20)))]


def compare_pulled() -> list[tuple[str, str]]:
    (_, key), page = device(), str(random.randint(1, 20))
    return [("a", f"pulled:1:{key}"), ("b", f"pulled:2:{key}"), ("page", page)]


def compare_imports() -> list[tuple[str, str]]:
    first, second = IMPORTS
    return [("a", f"import:{first}"), ("b", f"import:{second}"), ("page", str(random.randint(1, 20)))]


def queue() -> list[tuple[str, str]]:
    return [("state", random.choice(["queued", "running", "parked", "done"]))]


PAGES: dict[str, tuple[str, Callable[[], list[tuple[str, str]]]]] = {
    "Coverage": ("coverage", coverage),
    "Coverage, two devices": ("coverage", side_by_side),
    "Problem": ("problem", problem),
    "Compare, two devices": ("compare", compare_devices),
    "Compare, two sweeps": ("compare", compare_sweeps),
    "Compare, two pulled sets": ("compare", compare_pulled),
    "Compare, two imports": ("compare", compare_imports),
    "Queue": ("queue", queue),
    "Kernels": ("kernels", lambda: [device()]),
    "Figures": ("figures", lambda: []),
}


def fill_sets(url: str) -> None:
    """Add two pulled sets of every record, and two imports of those of the first device."""
    same = "n, k, scheme, m, config, median_us, low_us, high_us, source_hash, mode, device_id, environment_id"
    every = f"{same}, default_config, default_us, created_at"
    pulled = f"INSERT INTO pulled ({every}, origin_id, version, since, until) SELECT {every}, 1, 'v'"
    statements = [
        "INSERT INTO origin (id, name) VALUES (1, 'fleet')",
        "INSERT INTO pulled_set (id, name, origin_id, pulled_at, rolled_back) "
        "VALUES (1, 'one', 1, 1, false), (2, 'two', 1, 2, false)",
        f"{pulled}, 1, 2 FROM record",
        f"{pulled}, 2, NULL FROM record",
    ]
    for sweep in IMPORTS:
        statements += [
            "INSERT INTO sweep (id, device_id, environment_id, started_at, finished_at, status, arguments) "
            f"VALUES ({sweep}, 1, 1, {sweep}, {sweep + 0.9}, 'finished', '{{\"import\": \"a.bundle\"}}')",
            f"INSERT INTO history ({same}, event, at) SELECT {same}, 'import', {sweep + 0.5} "
            "FROM record WHERE device_id = 1",
        ]
    if "://" in url:
        statements.append("ANALYZE pulled, history")
    with Store.open(url) as store, store.database.transaction(write=True) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def measure(name: str, url: str) -> None:
    """Print p50 and p99 of each page, and the p50 of its time on a core, whatever else the machine does."""
    site = Site(url)
    for title, (page, pairs) in PAGES.items():
        walls, cores = [], []
        for _ in range(CALLS):
            query, begin, used = Query(pairs()), time.perf_counter(), time.process_time()
            assert site.page(page, query).status == 200
            walls.append(1e3 * (time.perf_counter() - begin))
            cores.append(1e3 * (time.process_time() - used))
        p50, p99 = sorted(walls)[CALLS // 2], sorted(walls)[CALLS * 99 // 100]
        print(
            f"| {name}: {title} | {p50:.0f} ms | {p99:.0f} ms | {sorted(cores)[CALLS // 2]:.0f} ms |",
            flush=True,
        )
    site.viewer.close()


def main() -> None:
    print("| page | p50 | p99 | on a core, p50 |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/million.db"
        fill(path)
        fill_sets(path)
        measure("SQLite", path)
    with server(MANY) as postgres:
        url = postgres.url(postgres.create())
        fill(url)
        fill_sets(url)
        measure("PostgreSQL", url)


if __name__ == "__main__":
    main()
