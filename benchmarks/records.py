"""What shipped records cost a model load: 2,000 records of one device against none, in turns.

    python benchmarks/records.py

A fresh process each time looks up every bucket of some layers, as a model load does, on a device model that
need not be here. `exact` layers have records, `near` ones have records of other layers only, and of `stale`
ones no record is of today's kernels. Times are milliseconds from the first read to the last answer; without
records every answer is a default config.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

from autotune.bench.statistics import median_interval
from autotune.families import registry
from autotune.records.exchange import write_text
from autotune.records.lookup import Lookup
from autotune.store import reading as stored
from autotune.values.device import Device
from autotune.values.layer import BUCKETS, Layer, Problem
from autotune.values.record import Environment, Evidence, Record

H200 = Device("cuda", 0, "NVIDIA H200", "sm_90", 132, 50 << 20, 227 << 10, 141 << 30)
CASES = ("exact", "near", "stale")
_SIZES = ((1024, 8192, 512), (1024, 16384, 1024))


def layers() -> list[Layer]:
    """More than are asked for, of sizes as models have them."""
    schemes = product(("fp16", "bf16"), (128, 64), (True, False))
    sizes = product(range(*_SIZES[0]), range(*_SIZES[1]))
    found = [
        Layer(n, k, group_size=group, dtype=dtype, zero_point=zeros)
        for (n, k), (dtype, group, zeros) in product(sizes, schemes)
    ]
    return random.Random(0).sample(found, len(found))


def records(count: int) -> Iterator[Record]:
    """Records of today's kernels, with as much evidence as a sweep leaves."""
    for layer, m in islice(product(layers(), BUCKETS), count):
        problem = Problem(layer, m)
        config = registry.default_config(problem, H200)
        yield Record(
            problem=problem,
            device=H200.name,
            arch=H200.arch,
            config=config,
            median_us=5.0,
            low_us=4.9,
            high_us=5.1,
            default_config=config,
            default_us=6.0,
            source_hash=registry.kernel_hash(config, problem, H200),
            created_at="2026-01-01T00:00:00+00:00",
            mode="model",
            evidence=Evidence(100, (1.2, 1.19, 1.21), (), ((str(config), 5.5),) * 5, 1980, 0.4, 3.5),
        )


def write(folder: Path, count: int) -> dict[str, Path]:
    """A folder of shipped records for each case, and one without."""
    folders = {name: folder / name for name in ("none", *CASES)}
    for each in folders.values():
        each.mkdir()
    made = list(records(count))
    environment = Environment("CUDA 13.0", "nvrtc 13.0", "2.11.0", "0.1.0", {})
    old = [replace(record, source_hash="another kernel") for record in made]
    for name, its in (("exact", made), ("near", made), ("stale", old)):
        write_text(its, environment, folders[name] / "nvidia-h200.jsonl")
    return folders


def load(folder: Path, case: str, records: int, asked: int) -> dict[str, float | int]:
    """Milliseconds of one model load, and how many answers had a record."""
    used = -(-records // len(BUCKETS))
    chosen = layers()[:used] if case != "near" else layers()[used:]
    chosen = random.Random(1).sample(chosen, asked)
    registry.families()
    stored.shipped = lambda _: folder
    begin = time.perf_counter()
    lookup = Lookup(H200, folder / "no.db")
    answers = [lookup.answer(Problem(layer, m)) for layer, m in product(chosen, BUCKETS)]
    took_ms = 1e3 * (time.perf_counter() - begin)
    return {"ms": took_ms, "with_record": sum(answer.record is not None for answer in answers)}


def measured(folder: Path, case: str, options: argparse.Namespace, asked: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--records", str(options.records), "--load"]
    command += [str(folder), case, str(asked)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def show(case: str, asked: int, pairs: Sequence[tuple[dict[str, float], dict[str, float]]]) -> None:
    none, some = ([each["ms"] for each in side] for side in zip(*pairs, strict=True))
    more = median_interval([b - a for a, b in zip(none, some, strict=True)])
    answered = round(pairs[0][1]["with_record"])
    print(
        f"{case:<6} {asked:>6} {asked * len(BUCKETS):>8} {answered:>8}"
        f" {median_interval(none).median:>9.1f} {median_interval(some).median:>9.1f}"
        f" {more.median:>8.1f} ({more.low:.1f} to {more.high:.1f})",
        flush=True,
    )


def main() -> None:
    """Print a line for each case and number of layers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        folder, case, asked = options.load
        print(json.dumps(load(Path(folder), case, options.records, int(asked))))
        return
    with tempfile.TemporaryDirectory() as name:
        folders = write(Path(name), options.records)
        print("case   layers  answers  records   none ms   some ms     more (95 % interval)")
        for case, asked in product(CASES, (4, 8)):
            pairs = [
                (
                    measured(folders["none"], case, options, asked),
                    measured(folders[case], case, options, asked),
                )
                for _ in range(options.pairs)
            ]
            show(case, asked, pairs)


if __name__ == "__main__":
    main()
