"""What a layer's type, zeros and group size cost, and what plain launches would: stored configs in one run.

    for format in "" "--dtype bf16" --no-zero-point "--group-size 64" "--group-size 32"; do
        autotune sweep --shapes llama7b --m 1,4,8,16,32,64 $format
    done
    python benchmarks/formats.py

As in peers.py: all formats take part in every round, in a new order each time, each in a CUDA graph that
rotates over copies of its own weight. `plain` is fp16 again, with launches that wait for the kernel ahead to
end. The table has sums over a layer's fused linears in microseconds, and their ratios to fp16.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from peers import compare
from peers_columns import Contestant, tuned_and_default

from autotune.bench.operands import Operands
from autotune.checkpoints.shapes import parse_shapes
from autotune.records.lookup import Lookup
from autotune.values.device import Device, find_device
from autotune.values.layer import Layer, Problem

_FORMATS: dict[str, dict[str, Any]] = {
    "fp16": {},
    "bf16": {"dtype": "bf16"},
    "symmetric": {"zero_point": False},
    "group 64": {"group_size": 64},
    "group 32": {"group_size": 32},
}


class Plain:
    """A kernel whose launches never start early."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def launch(self, *arguments: Any) -> None:
        grid, block, shared_bytes, stream, parameters, *_ = arguments
        self._function.launch(grid, block, shared_bytes, stream, parameters)


def contestants(layer: Layer, ms: list[int], device: Device, lookup: Lookup) -> list[Contestant]:
    """The stored config of each format of the layer; every record has to be there."""
    found = []
    for name, changes in _FORMATS.items():
        each = replace(layer, **changes)
        for m in ms:
            answer = lookup.answer(Problem(each, m))
            if answer.source not in ("exact", "shipped"):
                raise SystemExit(f"m={m}, {each}: no record of {device.name}; sweep it first")
        stored, _ = tuned_and_default(Operands.random(each, device), lookup)
        found.append(replace(stored, name=name))
        if name == "fp16":
            found.append(replace(stored, name="plain", plan=_plain(stored.plan)))
    return found


def _plain(plan_of: Callable[[int], Any]) -> Callable[[int], Any]:
    def plain(m: int) -> Any:
        plan = plan_of(m)
        plan._function = Plain(plan._function)
        return plan

    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="llama7b")
    parser.add_argument("--m", default="1,4,8,16,32,64")
    parser.add_argument("--db")
    options = parser.parse_args()
    device, ms = find_device("cuda"), [int(m) for m in options.m.split(",")]
    lookup = Lookup(device, options.db)
    sums: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for shape in parse_shapes(options.shapes):
        if not {"qkv", "o", "gate_up", "down"}.intersection(shape.projections):
            continue
        entries = contestants(shape.layer, ms, device, lookup)
        operands = Operands.random(shape.layer, device)
        for m in ms:
            for name, time in compare(m, operands, entries, device).items():
                sums[m][name] += time.median
        del entries, operands
        torch.cuda.empty_cache()
    print("  m", *(f"{name:>18}" for name in next(iter(sums.values()))))
    for m, times in sums.items():
        cells = (f"{time:.2f} ({time / times['fp16']:.3f})" for time in times.values())
        print(f"{m:>3}", *(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
