"""Can the measurements be trusted? Races of one config against itself, against a slower copy of itself, and a
naive timer beside them.

    python benchmarks/method.py --races 200         on a GPU, where a sample is a whole rotation

A/A: one config is entered twice; a race that tells the two apart is wrong. Slowed: the copy makes one call in
33 twice, which is 3 % more work; a race that does not find the copy slower has missed it. Naive: host clock,
one weight, one candidate after the other, ten calls each, as tuners inside serving code do; it is asked for
the fastest of the candidates whose true order many interleaved rounds of the same candidates give.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from autotune.bench.monitor import monitor_for
from autotune.bench.operands import Operands
from autotune.bench.race import Rounds, Runner, race
from autotune.bench.timer import timer_for
from autotune.families import registry
from autotune.families.protocol import Plan
from autotune.families.workspace import workspace
from autotune.jit import compiler
from autotune.jit.building import build_all
from autotune.layouts import PackedWeight
from autotune.values.config import Config
from autotune.values.device import Device, find_device
from autotune.values.layer import Layer, Problem

LAYERS = (Layer(12288, 4096), Layer(4096, 4096), Layer(22016, 4096), Layer(4096, 11008))
TOKENS = (1, 4, 16, 64)
CALLS = 33
NAIVE_CALLS = 10
NAIVE_CANDIDATES = 40
CLEARLY_SLOWER = 1.03


@dataclass
class Slowed:
    """A plan that makes one call in CALLS twice: 1/33 or 3 % more work."""

    plan: Plan
    calls: int = 0

    def workspace_bytes(self, m: int) -> int:
        return self.plan.workspace_bytes(m)

    def run(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        scratch: torch.Tensor | None,
    ) -> None:
        self.calls += 1
        for _ in range(2 if self.calls % CALLS == 0 else 1):
            self.plan.run(x, weight, bias, out, scratch)


class Bench:
    """The operands of one layer, with a rotation of CALLS copies."""

    def __init__(self, layer: Layer, device: Device) -> None:
        self.layer, self.device = layer, device
        operands = Operands.random(layer, device)
        times = max(1, -(-len(operands.copies) // CALLS))
        copies = tuple(itertools.islice(itertools.cycle(operands.copies), CALLS * times))
        # Calls with many tokens rotate over fewer, unless the cache is said to hold them all.
        whole = replace(device, l2_bytes=max(device.l2_bytes, CALLS * times * layer.weight_bytes))
        self.operands = replace(operands, copies=copies, device=whole)

    def plan(self, config: Config) -> Plan:
        family = registry.family_of(config)
        unit = family.unit(config, self.layer, self.device)
        return family.plan(config, self.layer, self.device, None if unit is None else compiler.build(unit))

    def runners(self, plans: Sequence[Plan], m: int) -> list[Runner]:
        activations = self.operands.activations(m)
        return [Runner(timer_for(plan, self.operands, activations)) for plan in plans]


def told_apart(bench: Bench, m: int, config: Config, slowed: bool, seed: int) -> bool:
    """Whether a race of the config against itself, slowed or not, finds the second slower (any, if not)."""
    second = Slowed(bench.plan(config)) if slowed else bench.plan(config)
    runners = bench.runners([bench.plan(config), second], m)
    race(runners, Rounds(monitor_for(bench.device), seed))
    if slowed:
        return runners[1].left_after is not None
    return any(runner.left_after is not None for runner in runners)


def naive_regret(bench: Bench, m: int, configs: Sequence[Config]) -> float:
    """Time of the naive timer's pick over that of the best, both from the same interleaved rounds."""
    plans = [bench.plan(config) for config in configs]
    naive_us = [naive(bench, plan, m) for plan in plans]
    runners = bench.runners(plans, m)
    rounds = Rounds(monitor_for(bench.device))
    for _ in range(15):
        for runner, sample in zip(runners, rounds.run(runners), strict=True):
            runner.samples_us.append(sample)
    true_us = [runner.median_us for runner in runners]
    return true_us[naive_us.index(min(naive_us))] / min(true_us)


def naive(bench: Bench, plan: Plan, m: int) -> float:
    """Microseconds per call by the host's clock, on one warm weight."""
    x = bench.operands.tokens(m, seed=0)
    out = torch.empty((m, bench.layer.n), dtype=x.dtype, device=x.device)
    scratch = workspace(x.device, plan.workspace_bytes(m))

    def calls(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            plan.run(x, bench.operands.copies[0], None, out, scratch)
        if bench.device.kind == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) * 1e6 / count

    calls(2)
    return calls(NAIVE_CALLS)


def build(chosen: Iterable[tuple[Layer, Config]], device: Device) -> None:
    """Compile in parallel, so that plans are made from the cache."""
    units = (registry.family_of(config).unit(config, layer, device) for layer, config in chosen)
    build_all(unit for unit in units if unit is not None)


def measure(device: Device, races: int) -> dict[str, float]:
    benches = [Bench(layer, device) for layer in LAYERS]
    settings = list(itertools.product(benches, TOKENS))
    pick = random.Random(0)
    samples = {}
    for bench, m in settings:
        space = registry.space(Problem(bench.layer, m), device)
        samples[bench.layer, m] = pick.sample(space, min(NAIVE_CANDIDATES, len(space)))
    build([(layer, config) for (layer, _), configs in samples.items() for config in configs], device)
    counts = {"aa_told_apart": 0, "slowed_found": 0}
    for number in range(races):
        bench, m = settings[number % len(settings)]
        config = pick.choice(samples[bench.layer, m])
        counts["aa_told_apart"] += told_apart(bench, m, config, False, number)
        counts["slowed_found"] += told_apart(bench, m, config, True, number)
    regrets = [naive_regret(bench, m, samples[bench.layer, m]) for bench, m in settings]
    return {
        "races": races,
        **counts,
        "naive_problems": len(regrets),
        "naive_picks_over_3_percent_slower": sum(regret > CLEARLY_SLOWER for regret in regrets),
        "naive_worst_regret": max(regrets),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(find_device(arguments.device), arguments.races)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name.replace('_', ' '):36} {value:g}")


if __name__ == "__main__":
    main()
