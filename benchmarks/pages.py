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

from autotune.values.device import Device
from autotune.web.coverage import METRICS
from autotune.web.query import Query, device_key
from autotune.web.site import Site

CALLS = 100


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


def queue() -> list[tuple[str, str]]:
    return [("state", random.choice(["queued", "running", "parked", "done"]))]


PAGES: dict[str, tuple[str, Callable[[], list[tuple[str, str]]]]] = {
    "Coverage": ("coverage", coverage),
    "Coverage, two devices": ("coverage", side_by_side),
    "Problem": ("problem", problem),
    "Compare, two devices": ("compare", compare_devices),
    "Compare, two sweeps": ("compare", compare_sweeps),
    "Queue": ("queue", queue),
    "Kernels": ("kernels", lambda: [device()]),
    "Figures": ("figures", lambda: []),
}


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
    if len(sys.argv) > 1:
        measure("SQLite", sys.argv[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/million.db"
        fill(path)
        measure("SQLite", path)
    with server(MANY) as postgres:
        url = postgres.url(postgres.create())
        fill(url)
        measure("PostgreSQL", url)


if __name__ == "__main__":
    main()
