"""What an answer costs between the buckets: its config against the best that tuning m itself finds.

    python benchmarks/between.py --db between.db --json between.jsonl --limit 540

First a sweep of the buckets that serve these numbers of tokens, as `autotune sweep` does it. Then for each m
one race of its whole space with the config that the database answers, which stays to the end: the loss is
its time over that of the fastest, round by round. Beside it what the next power of two answers, by medians of
the same race. The fastest of many is flattered by chance, so a loss below 1 % may be none. Both files are
kept, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from autotune.bench.statistics import ratio_interval
from autotune.checkpoints.shapes import parse_shapes
from autotune.cli.output import problem_fields
from autotune.console.text import table
from autotune.executors.local import local_executors
from autotune.families import registry
from autotune.records.lookup import Lookup
from autotune.search.executor import Executor
from autotune.search.fleet import Task, tune_all
from autotune.search.sweep import sweep
from autotune.store.store import Store
from autotune.values.layer import Layer, Problem, bucket_of, buckets_for
from autotune.values.record import Trial

_SIZES = ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (12288, 4096), (5120, 27648))
LAYERS = ";".join(f"n={n},k={k}" for n, k in _SIZES)
TOKENS = (
    *(1, 3, 5, 7, 9, 12, 14, 17, 20, 24, 28, 31, 33, 36, 40, 44, 47, 52, 56, 60, 65, 72, 80, 88, 100, 112),
    *(120, 129, 144, 160, 176, 200, 224, 240, 257, 288, 333, 352, 400, 448, 480, 513, 576, 704, 800, 960),
    *(1100, 1300, 1600, 2000, 2500, 3200, 4000),
)
_PROBLEM = ("n", "k", "group_size", "dtype", "zero_point", "m")


class Limit:
    """Ends a loop when the time is up."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def over(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end


def needed(m: int) -> set[int]:
    """The buckets whose records decide what answers m: of a finer one also those that it learns from."""
    bucket, above = bucket_of(m), buckets_for(m)[-1]
    return {bucket, above} if bucket == above else {bucket, above, above // 2}


def swept(problems: Sequence[Problem], store: Store, executors: Sequence[Executor], limit: Limit) -> bool:
    """Tune them as far as there is time; whether all are."""
    with contextlib.closing(sweep(problems, store, executors)) as running:
        for count, outcome in enumerate(running, start=1):
            if outcome.record is None:
                sys.exit(f"{outcome.problem} has no record: {outcome.note}")
            if limit.over() and count < len(problems):
                print(f"swept {count} of {len(problems)} problems; the same command goes on", file=sys.stderr)
                return False
    return True


def tasks_of(problems: Iterable[Problem], lookup: Lookup) -> Iterator[Task]:
    """A race of the answer, what the next power of two answers, and the whole space of each."""
    for problem in problems:
        answer, coarse = answers_of(problem, lookup)
        reason = registry.family_of(answer).reject(answer, problem, lookup.device)
        if reason is not None:
            print(f"{problem}: {answer} runs, but is not in its space: {reason}", file=sys.stderr)
            continue
        space = registry.candidates(problem, lookup.device)
        fits = registry.family_of(coarse).reject(coarse, problem, lookup.device) is None
        yield Task(problem, list(dict.fromkeys((answer, *([coarse] if fits else []), *space))))


def answers_of(problem: Problem, lookup: Lookup) -> tuple[Any, Any]:
    """The configs that the problem's m has, and has where there are records of powers of two only."""
    coarse = Problem(problem.layer, buckets_for(problem.m)[-1])
    return lookup.answer(problem).config, lookup.answer(coarse).config


def row_of(task: Task, trials: Sequence[Trial], lookup: Lookup) -> dict[str, Any]:
    """What the race says; without a loss where the answer failed."""
    problem = task.problem
    answer, coarse = answers_of(problem, lookup)
    by_config = {trial.config: trial for trial in trials}
    passed = [trial for trial in trials if trial.status == "ok"]
    rounds = max((len(trial.samples_us) for trial in passed), default=0)
    own = by_config[answer]
    row = {**problem_fields(problem), "device": lookup.device.name, "answer": str(answer)}
    if own.status != "ok":
        return row | {"loss": None, "error": f"{own.status}: {own.error}"}
    best = min(
        (each for each in passed if len(each.samples_us) == rounds), key=lambda each: each.median_us or 0
    )
    loss = ratio_interval(own.samples_us[:rounds], best.samples_us[:rounds])
    row |= {"best": str(best.config), "answer_us": own.median_us, "best_us": best.median_us, "rounds": rounds}
    row |= {"configs": len(trials), "loss": [loss.median - 1, loss.low - 1, loss.high - 1]}
    coarse_us = by_config[coarse].median_us if coarse in by_config else None
    coarse_loss = row["loss"][0] if coarse == answer else coarse_us and coarse_us / best.median_us - 1
    return row | {"coarse": str(coarse), "coarse_loss": coarse_loss}


def measured(file: Path) -> list[dict[str, Any]]:
    """What the file has; the torn last line of a run that was killed is taken away."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """By m the mean and the worst loss over the layers, then of all."""
    known = [row for row in rows if row["loss"] is not None]
    for row in rows:
        if row["loss"] is None:
            print(f"{row['n']}x{row['k']} m={row['m']}: {row['answer']} is {row['error']}")
    if not known:
        return
    shown = []
    for m in sorted({row["m"] for row in known}):
        mine = [row for row in known if row["m"] == m]
        worst = max(mine, key=lambda row: row["loss"][0])
        coarse = [row["coarse_loss"] for row in mine if row["coarse_loss"] is not None]
        which = f"{worst['n']}x{worst['k']}  {worst['answer']}  best {worst['best']}"
        mean = f"{fmean(row['loss'][0] for row in mine):.1%}"
        shown.append((str(m), str(len(mine)), mean, f"{worst['loss'][0]:.1%}", *coarse_of(coarse), which))
    print(table(("m", "layers", "mean", "worst", "mean of 2^i", "worst of 2^i", "worst at"), shown))
    losses = [row["loss"][0] for row in known]
    print(f"{len(known)} problems: mean loss {fmean(losses):.2%}, worst {max(losses):.2%}")


def coarse_of(losses: Sequence[float]) -> tuple[str, str]:
    return (f"{fmean(losses):.1%}", f"{max(losses):.1%}") if losses else ("-", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", default=LAYERS, help="six layers where it is left out")
    parser.add_argument("--m", default=",".join(map(str, TOKENS)), help="numbers of tokens, as 33,100")
    parser.add_argument("--db", default="between.db", help="the database that is swept and answers")
    parser.add_argument("--json", default="between.jsonl", help="a file, a line for each problem")
    parser.add_argument("--limit", type=float, help="seconds after which nothing new begins")
    options = parser.parse_args()
    limit, file, tokens = Limit(options.limit), Path(options.json), [int(m) for m in options.m.split(",")]
    layers: list[Layer] = list(dict.fromkeys(shape.layer for shape in parse_shapes(options.shapes)))
    rows = measured(file)
    done = {tuple(row[name] for name in _PROBLEM) for row in rows}
    problems = [Problem(layer, m) for layer in layers for m in tokens]
    left = [each for each in problems if tuple(problem_fields(each)[name] for name in _PROBLEM) not in done]
    buckets = sorted({bucket for each in left for bucket in needed(each.m)})
    with contextlib.ExitStack() as stack:
        executors = local_executors(options.device, allow_busy=False)
        for executor in executors:
            stack.enter_context(executor)
        with Store.open(options.db) as store:
            ready = swept([Problem(layer, m) for layer in layers for m in buckets], store, executors, limit)
        if ready and left:
            lookup = Lookup(executors[0].device, options.db)
            running = stack.enter_context(contextlib.closing(tune_all([*tasks_of(left, lookup)], executors)))
            output = stack.enter_context(file.open("a", encoding="utf-8"))
            for task, result in running:
                rows.append(row_of(task, result.tuned.trials, lookup))
                output.write(json.dumps(rows[-1]) + "\n")
                output.flush()
                if limit.over():
                    break
    show(rows)


if __name__ == "__main__":
    main()
