"""What is lost where nobody swept? Leaves out the layers of a model, and reads a database; it needs no GPU.

    python benchmarks/prediction.py swept.db --json prediction.jsonl
    python benchmarks/prediction.py another.db --by swept.db

For each model in turn, a fit is made of the timed configs of all other sizes n x k, and chooses for the
model's own. With `--by` it is made of that database's other sizes, and judged by all problems of the first.
Beside it what the default config loses, and the config of the nearest layer that was timed (`near`). A loss
is the time of a choice over the best time of its problem, less 1. A choice that nobody timed cannot be
judged: then the next choice that was timed is, and `untimed` counts it; of `default` and `near`, which have
one choice, it is left out. Powers of two are told apart (`whole`), because a sweep times their whole space,
of other numbers of tokens a few configs.

Then what a sweep loses that leaves out what is predicted to be slow, and how much it leaves out; and what the
fit expects a sweep to save of each call, beside what it saved.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log2
from statistics import fmean
from typing import Any

from autotune.checkpoints.shapes import PRESETS
from autotune.console.text import table
from autotune.families import registry
from autotune.prediction.evaluation import Kept, Losses, Pick, Saving, Way, expected, kept, picks, unseen
from autotune.prediction.fitting import Timing, make
from autotune.prediction.predictor import Predictor
from autotune.prediction.timings import of_store
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import COARSE, Layer, Problem

_NEAR_OCTAVES = 2.0
_NEAR_LAYERS = 4
_ALIKE = 0.01
"""What a winner may lose and be as good."""


def models() -> dict[str, frozenset[tuple[int, int]]]:
    """n and k of every linear of each preset, fused and not; presets of the same sizes go together."""
    names: dict[frozenset[tuple[int, int]], list[str]] = defaultdict(list)
    for name, decoder in PRESETS.items():
        names[frozenset(decoder.projections(1).values())].append(name)
    return {", ".join(each): sizes for sizes, each in names.items()}


def near(timings: Sequence[Timing], device: Device) -> Way:
    """The valid winner of the nearest layer, by octaves of n and k, at its nearest number of tokens."""
    best: dict[Layer, dict[int, Timing]] = defaultdict(dict)
    for timing in timings:
        layer, m = timing.problem.layer, timing.problem.m
        if m not in best[layer] or timing.us < best[layer][m].us:
            best[layer][m] = timing

    def way(problem: Problem) -> list[Config]:
        def away(other: Layer) -> tuple[float, Layer]:
            layer = problem.layer
            return abs(log2(other.n / layer.n)) + abs(log2(other.k / layer.k)), other

        for layer in sorted(best, key=away)[:_NEAR_LAYERS]:
            if away(layer)[0] > _NEAR_OCTAVES:
                break
            for m in sorted(best[layer], key=lambda m: (abs(log2(m / problem.m)), -m)):
                config = best[layer][m].config
                far = abs(log2(m / problem.m)) > _NEAR_OCTAVES
                if not far and registry.family_of(config).reject(config, problem, device) is None:
                    return [config]
        return [registry.default_config(problem, device)]

    return way


def chosen(predictor: Predictor) -> Way:
    """What look-up would run, and what it would run without that."""
    return lambda problem: [each.config for each in predictor.ranked(problem)]


@dataclass(frozen=True)
class Judged:
    """Of a model that was left out: the picks of each way, what a sweep keeps, and savings by way."""

    model: str
    picks: Mapping[str, Sequence[Pick]]
    kept: Sequence[Kept]
    savings: Mapping[str, Sequence[Saving]]


def judged(model: str, seen: Sequence[Timing], own: Sequence[Timing], device: Device) -> Judged:
    """What is seen judges what is the model's own."""
    predictor = Predictor(make(seen, device), device)
    ways: dict[str, Way] = {
        "default": lambda problem: [registry.default_config(problem, device)],
        "near": near(seen, device),
        "predicted": chosen(predictor),
    }
    found = {name: picks(way, own) for name, way in ways.items()}
    savings = {name: expected(found[name], own, predictor) for name in ("default", "predicted")}
    return Judged(model, found, kept(own, predictor), savings)


def evaluated(timings: Sequence[Timing], device: Device) -> Iterator[Judged]:
    """Each model of which there are timings, left out in turn."""
    for model, sizes in models().items():
        seen, own = unseen(timings, sizes)
        if own and seen:
            yield judged(model, seen, own, device)


def row(pick: Pick, model: str, way: str) -> dict[str, Any]:
    fields = {**asdict(pick.problem.layer), "m": pick.problem.m, "config": str(pick.config)}
    return {"left_out": model, "way": way, **fields, "loss": round(pick.loss, 5), "timed": pick.timed}


def show(found: Sequence[Judged]) -> None:
    """By model left out, by family of the choice, and by number of tokens; then sweeps and savings."""
    flat = [
        (each.model, way, pick) for each in found for way, picked in each.picks.items() for pick in picked
    ]
    _show("left out", flat)
    _show("left out", [(f"{each[0]} {_kind(each[2].problem)}", *each[1:]) for each in flat])
    _show("family", [(each[2].config.family, *each[1:]) for each in flat])
    _show("m", [(str(each[2].problem.m), *each[1:]) for each in flat])
    _show("", [("all", *each[1:]) for each in flat])
    _show_kept(found)
    _show_savings(found)


def _kind(problem: Problem) -> str:
    return "whole" if problem.m in COARSE else "others"


def _show_kept(found: Sequence[Judged]) -> None:
    groups: dict[str, list[Kept]] = defaultdict(list)
    for each in found:
        for one in each.kept:
            kind = _kind(one.pick.problem)
            for name in (f"all {kind}", f"{each.model} {kind}"):
                groups[name].append(one)
    rows = []
    for name, own in groups.items():
        losses = Losses.of([each.pick for each in own])
        raced = sum(each.kept for each in own) / sum(each.configs for each in own)
        within = sum(each.pick.loss <= _ALIKE for each in own) / len(own)
        shares = (f"{raced:.1%}", f"{losses.mean:.3%}", f"{losses.most:.2%}", f"{losses.worst:.2%}")
        rows.append((name, *shares, f"{within:.1%}", str(losses.count)))
    print(table(("swept by prediction", "raced", "mean", "95 %", "worst", "within 1 %", "problems"), rows))


def _show_savings(found: Sequence[Judged]) -> None:
    groups: dict[tuple[str, str], list[Saving]] = defaultdict(list)
    for each in found:
        for way, savings in each.savings.items():
            for saving in savings:
                for name in ("all", str(saving.problem.m)):
                    if saving.problem.m in COARSE:
                        groups[name, way].append(saving)
    rows = [
        (m, way, f"{fmean(each.expected for each in own):.2%}", f"{fmean(each.found for each in own):.2%}")
        for (m, way), own in groups.items()
    ]
    print(table(("m", "ran", "expected to save", "saved"), rows))


def _show(head: str, found: Sequence[tuple[str, str, Pick]]) -> None:
    groups: dict[tuple[str, str], list[Pick]] = defaultdict(list)
    for group, way, pick in found:
        groups[group, way].append(pick)
    rows = []
    for (group, way), own in groups.items():
        losses = Losses.of(own)
        shares = (f"{share:.1%}" for share in (losses.mean, losses.most, losses.worst))
        rows.append((group, way, *shares, str(losses.count), str(losses.untimed)))
    print(table((head, "way", "mean", "95 %", "worst", "problems", "untimed"), rows), end="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("db", help="a database of sweeps")
    parser.add_argument("--by", help="another one, of which fits are made")
    parser.add_argument("--json", help="write every choice to this file, a line each")
    options = parser.parse_args()
    with Store.open(options.db) as store, Store.open(options.by or options.db) as other:
        for device in store.devices():
            timings = of_store(store, device)
            sizes = {(each.problem.layer.n, each.problem.layer.k) for each in timings}
            print(f"{device.name}: {len(timings)} timed configs of {len(sizes)} sizes\n")
            if options.by:
                found = [judged(options.db, unseen(of_store(other, device), sizes)[0], timings, device)]
            else:
                found = list(evaluated(timings, device))
            show(found)
            if options.json:
                with open(options.json, "w", encoding="utf-8") as file:
                    for each in found:
                        for way, picked in each.picks.items():
                            file.writelines(json.dumps(row(pick, each.model, way)) + "\n" for pick in picked)


if __name__ == "__main__":
    main()
