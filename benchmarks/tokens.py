"""Whether any number of tokens takes longer than the bucket that serves it.

    python benchmarks/tokens.py --json tokens.jsonl

Every m up to 64, then every multiple of 8 and its neighbours up to 512, each with the config that a model
runs for it, beside the next bucket in the same rounds. A ratio above 1.03 whose interval is above it too is a
hole between the buckets. Each result is compared with a reference before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from autotune.bench.monitor import monitor_for
from autotune.bench.operands import Activation, Operands
from autotune.bench.race import Rounds, Runner
from autotune.bench.statistics import median_interval, ratio_interval
from autotune.bench.timer import GraphTimer
from autotune.checkpoints.shapes import parse_shapes
from autotune.families.workspace import workspace
from autotune.records.lookup import Lookup
from autotune.runtime.plans import LayerPlans
from autotune.schemes.int4 import reference_matmul
from autotune.values.device import Device, find_device
from autotune.values.layer import BUCKETS, bucket_of

_ROUNDS = 25
_ALLOWED = 1.03
_LARGEST_ERROR = 2e-3
_FUSED = {"qkv", "o", "gate_up", "down"}


def token_counts() -> list[int]:
    """Every number of tokens that is timed."""
    near = {m + step for m in range(64, 513, 8) for step in (-1, 0, 1)}
    return sorted({*range(1, 65), *(m for m in near if m <= 512)})


def activation(operands: Operands, m: int) -> Activation:
    """x in the middle of NaN, and an output of NaN."""
    rows = torch.full((m + 2, operands.layer.k), torch.nan, device=operands.weight.scales.device)
    rows = rows.to(operands.weight.scales.dtype)
    rows[1 : m + 1] = operands.tokens(m, seed=m)
    return Activation(rows[1 : m + 1], torch.full_like(rows[:m, :1], torch.nan).repeat(1, operands.layer.n))


def check(operands: Operands, plans: LayerPlans, m: int, each: Activation) -> None:
    plan = plans.plan(m)
    plan.run(each.x, operands.copies[0], None, each.out, workspace(each.x.device, plan.workspace_bytes(m)))
    expected = reference_matmul(operands.weight, each.x)
    error = float((each.out.float() - expected).norm() / expected.norm())
    if not error <= _LARGEST_ERROR:
        sys.exit(f"{operands.layer}, m={m}: the result is wrong, relative error {error:.3g}")


def rows_of(operands: Operands, plans: LayerPlans, device: Device) -> Iterator[dict[str, Any]]:
    """One row for each number of tokens: its time, its bucket's, and the ratio, each with its interval."""
    layer = operands.layer
    for bucket in BUCKETS[: BUCKETS.index(512) + 1]:
        counts = [m for m in token_counts() if bucket_of(m) == bucket]
        runners = []
        for m in counts:
            each = activation(operands, m)
            check(operands, plans, m, each)
            runners.append(Runner(GraphTimer(plans.plan(m), operands.copies, [each])))
        rounds = Rounds(monitor_for(device))
        rounds.run(runners)
        samples = list(zip(*(rounds.run(runners) for _ in range(_ROUNDS)), strict=True))
        whole = samples[-1]
        for m, taken in zip(counts, samples, strict=True):
            time_us, ratio = median_interval(taken), ratio_interval(taken, whole)
            row = {"n": layer.n, "k": layer.k, "m": m, "bucket": bucket, "device": device.name}
            row |= {"config": str(plans.answer(bucket).config)}
            row |= {"time_us": [time_us.median, time_us.low, time_us.high]}
            yield row | {"ratio": [ratio.median, ratio.low, ratio.high]}


def show(rows: list[dict[str, Any]]) -> None:
    """For each layer and bucket the worst ratio, then every hole."""
    buckets = sorted({row["bucket"] for row in rows})
    print("time of an m over that of its bucket, the worst (at m)")
    print("layer        ", *(f"{bucket:>11}" for bucket in buckets))
    for n, k in dict.fromkeys((row["n"], row["k"]) for row in rows):
        cells = []
        for bucket in buckets:
            mine = (row for row in rows if (row["n"], row["k"], row["bucket"]) == (n, k, bucket))
            worst = max(mine, key=lambda row: row["ratio"][0])
            cells.append(f"{worst['ratio'][0]:.3f} ({worst['m']})")
        print(f"{n:>6}x{k:<6}", *(f"{cell:>11}" for cell in cells))
    holes = [row for row in rows if row["ratio"][0] > _ALLOWED and row["ratio"][1] > _ALLOWED]
    print(f"{len(holes)} of {len(rows)} take over {_ALLOWED - 1:.0%} longer than their bucket for certain")
    for row in holes:
        median, low, high = row["ratio"]
        which = f"{row['n']}x{row['k']} m={row['m']}, {row['config']}"
        print(f"  {median:.3f} ({low:.3f} to {high:.3f}): {which}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="llama7b;llama3-8b")
    parser.add_argument("--db", help="database to look in")
    parser.add_argument("--json", help="a file for what was measured, a line for each number of tokens")
    arguments = parser.parse_args()
    device = find_device("cuda")
    lookup = Lookup(device, arguments.db)
    rows: list[dict[str, Any]] = []
    for shape in parse_shapes(arguments.shapes):
        if not shape.projections or _FUSED.intersection(shape.projections):
            operands = Operands.random(shape.layer, device)
            rows += rows_of(operands, LayerPlans(shape.layer, lookup), device)
            torch.cuda.empty_cache()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    show(rows)


if __name__ == "__main__":
    main()
