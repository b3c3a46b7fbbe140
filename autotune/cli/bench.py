"""`autotune bench`: the stored config beside its default, torch's matmul and the roofline."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.options import (
    answered_problems,
    chosen_shapes,
    chosen_tokens,
    model_options,
    tuned_problems,
)
from autotune.cli.output import layer_name, microseconds, problem_fields, table

if TYPE_CHECKING:
    from autotune.bench.compare import Comparison
    from autotune.bench.statistics import Estimate
    from autotune.runtime.lookup import Answer
    from autotune.shapes import Shape

_EXAMPLES = """\b
Examples:
  autotune bench --shapes llama7b --m 1,16
  autotune bench --shapes n=4096,k=4096,group_size=128 --json"""


@click.command(epilog=_EXAMPLES)
@model_options
@click.option("--json", "as_json", is_flag=True, help="JSON Lines: each problem as it is measured.")
def command(m: tuple[int, ...] | None, device: str, db: str | None, as_json: bool, **layers: Any) -> None:
    """Measure what a model would run now.

    Each problem's config as it is looked up is verified and timed in the same rounds as its default config
    and torch's matmul on a dense weight of the same dtype. `floor` is the roofline: no kernel is faster
    than moving the bytes once, or doing the operations, at the rates that this device reached just now.
    """
    shapes = chosen_shapes(**layers)
    from autotune.device import find_device
    from autotune.runtime.lookup import Lookup
    from autotune.search.comparison import compare_problems

    found = find_device(device)
    tokens, lookup = chosen_tokens(m, found), Lookup(found, db)
    problems = tuned_problems(shapes, tokens) if m else answered_problems(shapes, tokens, lookup)
    compared = []
    for answer, comparison in compare_problems(problems, lookup):
        compared.append((answer, comparison))
        if as_json:
            click.echo(json.dumps(_fields(answer, comparison)))
    if not as_json:
        click.echo(_table(compared, shapes))
    noisy = [comparison for _, comparison in compared if comparison.noisy]
    if noisy:
        first = f"{layer_name(noisy[0].problem.layer, shapes)} m={noisy[0].problem.m}, {noisy[0].noisy}"
        click.echo(f"noisy, measure again: {len(noisy)} of {len(compared)}; the first: {first}", err=True)


def _fields(answer: Answer, comparison: Comparison) -> dict[str, Any]:
    return {
        **problem_fields(comparison.problem),
        "device": answer.device,
        "config": str(answer.config),
        "source": answer.source,
        "stored_us": _interval(comparison.stored),
        "default_us": _interval(comparison.default),
        "matmul_us": _interval(comparison.matmul),
        "gain": _interval(comparison.gain),
        "speedup": _interval(comparison.speedup),
        "floor_us": comparison.floor_us,
        "noisy": comparison.noisy,
    }


def _interval(estimate: Estimate) -> list[float]:
    return [estimate.median, estimate.low, estimate.high]


def _table(compared: Iterable[tuple[Answer, Comparison]], shapes: list[Shape]) -> str:
    rows = []
    order = {shape.layer: index for index, shape in enumerate(shapes)}
    ranked = sorted(compared, key=lambda each: (order[each[1].problem.layer], each[1].problem.m))
    for answer, comparison in ranked:
        rows.append(
            (
                layer_name(comparison.problem.layer, shapes),
                str(comparison.problem.m),
                microseconds(comparison.stored.median),
                microseconds(comparison.default.median),
                microseconds(comparison.matmul.median),
                microseconds(comparison.floor_us),
                *(("noisy",) * 3 if comparison.noisy else _ratios(comparison)),
                f"{answer.source} {answer.config}",
            )
        )
    times = ("us", "default us", "matmul us", "floor us")
    return table(("layer", "m", *times, "over default", "over matmul", "of floor", "config"), rows)


def _ratios(comparison: Comparison) -> tuple[str, str, str]:
    gain = comparison.gain
    return (
        f"{gain.median:.2f}x [{gain.low:.2f}, {gain.high:.2f}]",
        f"{comparison.speedup.median:.2f}x",
        f"{100 * comparison.floor_us / comparison.stored.median:.0f}%",
    )
