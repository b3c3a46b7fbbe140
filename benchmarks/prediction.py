"""What is lost where nobody swept? Leaves out the layers of a model, and reads a database; it needs no GPU.

    python benchmarks/prediction.py swept.db --json prediction.jsonl

For each model in turn, a fit is made of the timed configs of all other sizes n x k, and chooses for the
model's own. Beside it what the default config loses, and the config of the nearest layer that was timed
(`near`). A loss is the time of a choice over the best time of its problem, less 1. A choice that nobody timed
cannot be judged: then the next choice that was timed is, and `untimed` counts it; of `default` and `near`,
which have one choice, it is left out. Powers of two are told apart (`whole`), because a sweep times their
whole space, of other numbers of tokens a few configs. `half` is what a sweep finds that times half of the
configs of each problem, those that the fit puts first.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import log2
from typing import Any

from autotune.checkpoints.shapes import PRESETS
from autotune.console.text import table
from autotune.families import registry
from autotune.prediction.evaluation import Losses, Pick, Way, halved, picks, unseen
from autotune.prediction.fitting import Timing, make
from autotune.prediction.predictor import Predictor
from autotune.prediction.timings import of_store
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import COARSE, Layer, Problem

_NEAR_OCTAVES = 2.0
_NEAR_LAYERS = 4


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


def evaluated(timings: Sequence[Timing], device: Device) -> Iterator[tuple[str, str, Pick]]:
    """The model that was left out, the way, and a pick of it."""
    for model, sizes in models().items():
        seen, own = unseen(timings, sizes)
        if not own or not seen:
            continue
        predictor = Predictor(make(seen, device), device)
        ways: dict[str, Way] = {
            "default": lambda problem: [registry.default_config(problem, device)],
            "near": near(seen, device),
            "predicted": chosen(predictor),
        }
        for name, way in ways.items():
            yield from ((model, name, pick) for pick in picks(way, own))
        yield from ((model, "half", pick) for pick in halved(own, predictor))


def row(pick: Pick, model: str, way: str) -> dict[str, Any]:
    fields = {**asdict(pick.problem.layer), "m": pick.problem.m, "config": str(pick.config)}
    return {"left_out": model, "way": way, **fields, "loss": round(pick.loss, 5), "timed": pick.timed}


def show(found: Sequence[tuple[str, str, Pick]]) -> None:
    """By model left out, by family of the choice, and by number of tokens."""

    def name_of(each: tuple[str, str, Pick]) -> str:
        return f"{each[0]}{' whole' if each[2].problem.m in COARSE else ' others'}"

    _show("left out", list(found))
    _show("left out", [(name_of(each), *each[1:]) for each in found])
    _show("family", [(each[2].config.family, *each[1:]) for each in found])
    _show("m", [(str(each[2].problem.m), *each[1:]) for each in found])
    _show("", [("all", *each[1:]) for each in found])


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
    parser.add_argument("--json", help="write every choice to this file, a line each")
    options = parser.parse_args()
    with Store.open(options.db) as store:
        for device in store.devices():
            timings = of_store(store, device)
            sizes = {(each.problem.layer.n, each.problem.layer.k) for each in timings}
            print(f"{device.name}: {len(timings)} timed configs of {len(sizes)} sizes\n")
            found = list(evaluated(timings, device))
            show(found)
            if options.json:
                with open(options.json, "w", encoding="utf-8") as file:
                    file.writelines(json.dumps(row(pick, model, way)) + "\n" for model, way, pick in found)


if __name__ == "__main__":
    main()
