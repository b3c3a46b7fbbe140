"""Ours beside torch's matmul, torch's int4 kernel and other people's int4 kernels, on the same problems.

    python benchmarks/peers.py --shapes llama7b --m 1,16 --json results.jsonl
    python benchmarks/chart.py results.jsonl chart.svg

Everyone gets the same weights, in a layout of his own, and takes part when his package is installed
(humming-kernels, gemlite); each runs what his package chooses by itself. All are verified against the fp32
reference, then timed in one run: round by round, in a new order each time, each in a CUDA graph that rotates
over copies of his weight beyond three times the last cache. torch's int4 kernel knows bf16 only, and is timed
in bf16. The table has medians in microseconds, and sums over a layer's fused linears (qkv, o, gate_up, down).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autotune.bench.compare import Matmul, dense_operands
from autotune.bench.monitor import monitor_for
from autotune.bench.operands import Activation, Operands
from autotune.bench.race import Rounds, Runner
from autotune.bench.roofline import measure_peaks
from autotune.bench.statistics import Estimate, median_interval
from autotune.bench.timer import GraphTimer
from autotune.config import Config
from autotune.device import Device, find_device
from autotune.errors import AutotuneError
from autotune.formats import awq_gemm
from autotune.kernels import compiler, registry
from autotune.kernels.family import Plan
from autotune.layer import Layer, Problem
from autotune.packing import QuantizedWeight, reference_matmul
from autotune.runtime.lookup import Lookup
from autotune.shapes import parse_shapes

_ROUNDS = 25
_LARGEST_ERROR = 0.02
_ROTATED_BYTES = 200e6
_FUSED = frozenset(("qkv", "o", "gate_up", "down"))


class Foreign:
    """Somebody else's linear in the place of a plan: what it returns is its own, so `out` stays as it is."""

    def __init__(self, call: Callable[[Any, torch.Tensor], torch.Tensor], dtype: torch.dtype | None = None):
        self.call, self.dtype = call, dtype

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return 0

    def run(self, x: torch.Tensor, weight: Any, bias: None, out: torch.Tensor, workspace: None) -> None:  # noqa: ARG002
        self.call(weight, x)


@dataclass(frozen=True)
class Contestant:
    """A way to do one layer: a plan for a number of tokens, and the copies of the weight that it reads."""

    name: str
    plan: Callable[[int], Any]
    copies: Sequence[Any]
    dtype: torch.dtype


def tuned_and_default(operands: Operands, lookup: Lookup) -> Iterator[Contestant]:
    layer, device = operands.layer, operands.device

    def plan_of(config: Config) -> Plan:
        family = registry.family_of(config)
        unit = family.unit(config, layer, device)
        cubin = None if unit is None else lookup.binary(unit.key) or compiler.build(unit)
        return family.plan(config, layer, device, cubin)

    dtype = operands.weight.scales.dtype
    stored = lambda m: plan_of(lookup.answer(Problem(layer, m)).config)  # noqa: E731
    default = lambda m: plan_of(registry.default_config(Problem(layer, m), device))  # noqa: E731
    yield Contestant("stored", stored, operands.copies, dtype)
    yield Contestant("default", default, operands.copies, dtype)


def matmul(operands: Operands) -> Contestant:
    dtype = operands.weight.scales.dtype
    return Contestant("matmul", lambda _: Matmul(), dense_operands(operands, dtype).copies, dtype)


def torch_int4(operands: Operands) -> Contestant:
    """torch._weight_int4pack_mm: q - 8 times a scale, plus an offset; both bf16."""
    weight, layer = operands.weight, operands.layer
    pairs = weight.q[:, ::2] << 4 | weight.q[:, 1::2]
    zeros = 8.0 if weight.zeros is None else weight.zeros.float()
    scales = weight.scales.float()
    offsets = torch.stack((scales, (8 - zeros) * scales), dim=-1).to(torch.bfloat16).contiguous()

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        return torch._convert_weight_to_int4pack(pairs, 8), offsets.clone()

    def call(copy: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch._weight_int4pack_mm(x, copy[0], layer.group_size, copy[1])

    return Contestant("torch_int4", lambda _: Foreign(call), _copies(layer, make), torch.bfloat16)


def humming(operands: Operands) -> Contestant:
    from humming.layer import HummingLayer

    layer, dtype = operands.layer, operands.weight.scales.dtype
    tensors = dict(
        zip(("qweight", "qzeros", "scales"), awq_gemm.from_quantized(operands.weight), strict=True)
    )

    def make() -> Any:
        scheme = {"quant_method": "awq", "bits": 4, "group_size": layer.group_size, "zero_point": True}
        made = HummingLayer(shape_n=layer.n, shape_k=layer.k, weight_config=scheme, torch_dtype=dtype).cuda()
        made.load_from_tensors(tensors)
        made.transform()
        return made

    return Contestant("humming", lambda _: Foreign(lambda made, x: made(x)), _copies(layer, make), dtype)


def gemlite(operands: Operands) -> Contestant:
    from gemlite.helper import A16W4_HQQ_INT

    weight: QuantizedWeight = operands.weight
    dtype = weight.scales.dtype
    zeros = torch.full_like(weight.scales, 8) if weight.zeros is None else weight.zeros.to(dtype)

    def make() -> Any:
        maker = A16W4_HQQ_INT(device=str(weight.q.device), dtype=dtype)
        return maker.from_weights(weight.q, weight.scales.T.reshape(-1, 1), zeros.T.reshape(-1, 1))

    made = _copies(operands.layer, make)
    return Contestant("gemlite", lambda _: Foreign(lambda each, x: each(x)), made, dtype)


FOREIGN = {"torch_int4": torch_int4, "humming": humming, "gemlite": gemlite}


def _copies(layer: Layer, make: Callable[[], Any]) -> list[Any]:
    return [make() for _ in range(1 + round(_ROTATED_BYTES / (layer.n * layer.k / 2)))]


def compare(
    m: int, operands: Operands, contestants: Sequence[Contestant], device: Device
) -> dict[str, Estimate]:
    """The median time of a call of each contestant that is right, all in the same rounds."""
    activations = operands.activations(m)
    runners = {}
    for contestant in contestants:
        own = [Activation(each.x.to(contestant.dtype), each.out.to(contestant.dtype)) for each in activations]
        try:
            plan = contestant.plan(m)
            if isinstance(plan, Foreign):
                _check(plan, contestant, operands, own[0].x)
            runners[contestant.name] = Runner(GraphTimer(plan, contestant.copies, own))
        except (AutotuneError, RuntimeError, AssertionError) as error:
            print(
                f"{contestant.name} of m={m}, {operands.layer}: {str(error).splitlines()[0]}", file=sys.stderr
            )
    rounds = Rounds(monitor_for(device))
    rounds.run(list(runners.values()))
    samples = zip(*(rounds.run(list(runners.values())) for _ in range(_ROUNDS)), strict=True)
    return {name: median_interval(each) for name, each in zip(runners, samples, strict=True)}


def _check(plan: Foreign, contestant: Contestant, operands: Operands, x: torch.Tensor) -> None:
    expected = reference_matmul(operands.weight, x)
    for copy in (contestant.copies[0], contestant.copies[-1]):
        error = (plan.call(copy, x).float() - expected).norm() / expected.norm()
        if not error <= _LARGEST_ERROR:
            raise AutotuneError(f"its result is wrong: relative error {error:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="llama7b")
    parser.add_argument("--m", default="1,2,4,8,16,32,64")
    parser.add_argument("--peers", default=",".join(FOREIGN), help="those of %(default)s that take part")
    parser.add_argument("--db")
    parser.add_argument("--json", help="a file for what was measured, a line per problem")
    arguments = parser.parse_args()
    device = find_device("cuda")
    lookup = Lookup(device, arguments.db)
    there = [
        FOREIGN[name]
        for name in arguments.peers.split(",")
        if name and (name == "torch_int4" or importlib.util.find_spec(name))
    ]
    rows = []
    for shape in parse_shapes(arguments.shapes):
        operands = Operands.random(shape.layer, device)
        peaks = measure_peaks(device, shape.layer.dtype)
        contestants = [*tuned_and_default(operands, lookup), matmul(operands)]
        contestants += [make(operands) for make in there]
        for m in map(int, arguments.m.split(",")):
            times = compare(m, operands, contestants, device)
            row = {"n": shape.layer.n, "k": shape.layer.k, "m": m, "dtype": shape.layer.dtype}
            row |= {"device": device.name, "projections": shape.projections}
            row |= {"floor_us": peaks.floor_us(Problem(shape.layer, m))}
            row |= {f"{name}_us": [each.median, each.low, each.high] for name, each in times.items()}
            rows.append(row)
        del contestants, operands
        torch.cuda.empty_cache()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    show(rows)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Every problem, then the sums over the fused linears of a layer."""
    names = list(dict.fromkeys(key for row in rows for key in row if key.endswith("_us")))
    print("layer            m", *(f"{name[:-3]:>10}" for name in names))
    sums: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in sorted(rows, key=lambda row: row["m"]):
        times = {name: row[name][0] if isinstance(row.get(name), list) else row.get(name) for name in names}
        print(f"{row['n']:>6}x{row['k']:<6} {row['m']:>4}", *(_cell(times[name]) for name in names))
        if _FUSED.intersection(row["projections"]):
            for name in names:
                sums[row["m"]][name] += times[name] if times[name] is not None else float("nan")
    for m, times in sorted(sums.items()):
        print(f"sum           {m:>4}", *(_cell(times[name]) for name in names))


def _cell(time_us: float | None) -> str:
    return f"{'-' if time_us is None else format(time_us, '.2f'):>10}"


if __name__ == "__main__":
    main()
