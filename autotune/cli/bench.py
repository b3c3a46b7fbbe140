"""`autotune bench`: the stored config beside its default, torch's matmul and the roofline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.options import (
    answered_problems,
    check_counter,
    chosen_device,
    chosen_shapes,
    chosen_tokens,
    model_options,
    policy_option,
    tuned_problems,
)
from autotune.cli.output import Rows, problem_fields
from autotune.console.text import layer_name, microseconds
from autotune.values.counts import counted
from autotune.values.policy import policy_in_force

if TYPE_CHECKING:
    from autotune.bench.compare import Comparison
    from autotune.bench.statistics import Estimate
    from autotune.records.lookup import Answer

_EXAMPLES = """\b
Examples:
  autotune bench --shapes llama7b --m 1,16
  autotune bench --shapes n=4096,k=4096,group_size=128 --json
  autotune bench --shapes llama7b --m 1,16 --policy batch_invariant --energy"""


@click.command(epilog=_EXAMPLES)
@model_options
@policy_option
@click.option(
    "--energy", is_flag=True, help="Measure the energy of a call too, a second for each; NVIDIA GPUs only."
)
@click.option("--json", "as_json", is_flag=True, help="JSON Lines: each problem as it is measured.")
def command(
    m: tuple[int, ...] | None,
    device: str,
    db: str | None,
    policy: str | None,
    energy: bool,
    as_json: bool,
    **layers: Any,
) -> None:
    """Measure what a model would run now.

    Each problem's config as it is looked up is verified and timed in the same rounds as its default config
    and torch's matmul on a dense weight of the same dtype. `floor` is the roofline: no kernel is faster
    than moving the bytes once, or doing the operations, at the rates that this device reached just now.
    What a policy costs is what `over default` tells of its configs.
    """
    shapes = chosen_shapes(**layers)
    from autotune.records.lookup import Lookup
    from autotune.search.comparison import compare_problems

    found = chosen_device(device)
    check_counter(found, energy)
    tokens, lookup = chosen_tokens(m, found), Lookup(found, db, policy=policy_in_force(policy))
    problems = tuned_problems(shapes, tokens) if m else answered_problems(shapes, tokens, lookup)
    times = (("us", 8), ("default us", 8), ("matmul us", 8), ("floor us", 8))
    taken = (("mJ", 8), ("default mJ", 8), ("matmul mJ", 8)) if energy else ()
    ratios = (("over default", 18), ("over matmul", 7), ("of floor", 4))
    rows = Rows(shapes, *times, *ratios, *taken, ("config", 0))
    if not as_json:
        click.echo(rows.head())
    noisy = []
    for answer, comparison in compare_problems(problems, lookup, energy):
        if comparison.noisy:
            noisy.append(comparison)
        if as_json:
            click.echo(json.dumps(_fields(answer, comparison)))
        else:
            click.echo(rows.row(comparison.problem, *_cells(answer, comparison, energy)))
    if noisy:
        problem = noisy[0].problem
        of = f"{len(noisy)} of {counted(len(problems), 'problem')}"
        first = f"{layer_name(problem.layer, shapes)} m={problem.m}, {noisy[0].noisy}"
        click.echo(f"noisy, measure again: {of}; the first: {first}", err=True)


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
        "energy_j": [_interval(each) for each in comparison.energy],
        "noisy": comparison.noisy,
    }


def _interval(estimate: Estimate) -> list[float]:
    return [estimate.median, estimate.low, estimate.high]


def _cells(answer: Answer, comparison: Comparison, energy: bool) -> Sequence[str]:
    medians = (comparison.stored.median, comparison.default.median, comparison.matmul.median)
    ratios = ("noisy",) * 3 if comparison.noisy else _ratios(comparison)
    taken = [f"{1e3 * each.median:.4g}" for each in comparison.energy] or ["-"] * 3
    return (
        *map(microseconds, (*medians, comparison.floor_us)),
        *ratios,
        *(taken if energy else ()),
        f"{answer.source} {answer.config}",
    )


def _ratios(comparison: Comparison) -> tuple[str, str, str]:
    gain = comparison.gain
    return (
        f"{gain.median:.2f}x [{gain.low:.2f}, {gain.high:.2f}]",
        f"{comparison.speedup.median:.2f}x",
        f"{100 * comparison.floor_us / comparison.stored.median:.0f}%",
    )
