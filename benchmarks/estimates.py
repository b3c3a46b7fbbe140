"""How much do the default configs lose against the best of a sweep? Reads its database, which needs no GPU.

    python benchmarks/estimates.py swept.db --shapes qwen2.5-32b

For each family and number of tokens: what the family's own default took over the family's best config; and
as `all`, what the default of all families took over the best config of all. A default that the sweep did not
time is counted apart. `estimate` is what the defaults were estimated to take over what they took, the
geometric mean.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from autotune.checkpoints.shapes import parse_shapes
from autotune.families import registry
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import Problem

ALL = "all"


@dataclass(frozen=True, slots=True)
class Default:
    """A family's default for a problem (of all families: ALL), and what it and the best config took.

    `took_us` is None when the default was not timed.
    """

    family: str
    problem: Problem
    config: Config
    estimate_us: float
    took_us: float | None
    best: Config
    best_us: float

    @property
    def loss(self) -> float:
        """The share by which the default took longer than the best config."""
        assert self.took_us is not None
        return self.took_us / self.best_us - 1


def judged(problem: Problem, device: Device, times: dict[Config, float]) -> Iterator[Default]:
    """The default of all families, and of each that the sweep timed."""

    def judge(name: str, config: Config, timed: dict[Config, float]) -> Default:
        best = min(timed, key=timed.__getitem__)
        estimate_us = registry.family_of(config).estimate(config, problem, device)
        return Default(name, problem, config, estimate_us, timed.get(config), best, timed[best])

    yield judge(ALL, registry.default_config(problem, device), times)
    for family in registry.families_of(device):
        timed = {config: us for config, us in times.items() if config.family == family.name}
        config = family.default(problem, device)
        if timed and config is not None:
            yield judge(family.name, config, timed)


def defaults_of(database: str, shapes: str | None) -> list[Default]:
    """Of every problem with a record, or of those of the shapes."""
    layers = None if shapes is None else {shape.layer for shape in parse_shapes(shapes)}
    found: list[Default] = []
    with Store.open(database) as store:
        for device in store.devices():
            for problem in sorted({record.problem for record in store.records(device)}):
                trials = store.trials(problem, device)
                times = {each.config: each.median_us for each in trials if each.median_us is not None}
                if times and (layers is None or problem.layer in layers):
                    found += judged(problem, device, times)
    return found


def table(defaults: list[Default]) -> Iterator[str]:
    """A line for each family and number of tokens, and two for each family."""
    yield f"{'family':>15} {'m':>5} {'timed':>9} {'mean':>7} {'95 %':>7} {'worst':>7} {'estimate':>9}"
    for family in sorted({each.family for each in defaults}):
        mine = [each for each in defaults if each.family == family]
        for m in sorted({each.problem.m for each in mine}):
            yield from line(family, str(m), [each for each in mine if each.problem.m == m])
        yield from line(family, "<=32", [each for each in mine if each.problem.m <= 32])
        yield from line(family, ">32", [each for each in mine if each.problem.m > 32])


def line(family: str, m: str, group: list[Default]) -> Iterator[str]:
    """What is known of the group, if anything is."""
    timed = [each for each in group if each.took_us is not None]
    if not timed:
        return
    losses = sorted(each.loss for each in timed)
    most = losses[math.ceil(0.95 * len(losses)) - 1]
    over = statistics.fmean(math.log(each.estimate_us / (each.took_us or 1)) for each in timed)
    numbers = " ".join(f"{100 * loss:6.2f}%" for loss in (statistics.fmean(losses), most, losses[-1]))
    yield f"{family:>15} {m:>5} {len(timed):>4}/{len(group):<4} {numbers} {math.exp(over):>9.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database")
    parser.add_argument("--shapes", help="only the layers of these, as of `autotune sweep`")
    parser.add_argument("--worst", type=int, default=10, help="so many of the worst, and all not timed")
    arguments = parser.parse_args()
    defaults = defaults_of(arguments.database, arguments.shapes)
    print(*table(defaults), sep="\n")
    chosen = [each for each in defaults if each.family == ALL]
    timed = sorted((each for each in chosen if each.took_us is not None), key=lambda each: -each.loss)
    for each in timed[: arguments.worst]:
        print(f"{100 * each.loss:6.2f}%  {each.problem}: {each.config}, best {each.best}")
    for each in chosen:
        if each.took_us is None:
            print(
                f"not timed  {each.problem}: {each.config}, estimated {each.estimate_us:.1f} us; "
                f"best {each.best} {each.best_us:.1f} us"
            )


if __name__ == "__main__":
    main()
