"""`autotune lookup`: the config that a model would run, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from autotune.cli import explanation
from autotune.cli.options import (
    answered_problems,
    chosen_device,
    chosen_shapes,
    chosen_tokens,
    model_options,
    policy_option,
    served_tokens,
    serving_options,
)
from autotune.cli.output import problem_fields
from autotune.console.text import layer_name, microseconds, table
from autotune.values.counts import counted
from autotune.values.layer import Problem
from autotune.values.policy import policy_in_force

if TYPE_CHECKING:
    from autotune.checkpoints.shapes import Shape
    from autotune.records.lookup import Answer

# Measured for this problem on this device, be it by the user or by the authors.
_MEASURED = ("exact", "shipped")
_REQUIREMENT_NOT_MET = 3

_EXAMPLES = """\b
Examples:
  autotune lookup --shapes llama7b --m 1,16
  autotune lookup --n 4096 --k 4096 --m 1 --explain
  autotune lookup --shapes llama7b --require exact --json > plan.json
  autotune lookup --shapes llama7b --policy batch_invariant
  autotune lookup --serving ./my-model --tp 2 --require exact"""


@click.command(epilog=_EXAMPLES)
@model_options
@serving_options
@policy_option
@click.option("--n", type=int, help="Out features of one layer, with --k in place of --shapes.")
@click.option("--k", type=int, help="In features of one layer.")
@click.option(
    "--explain",
    is_flag=True,
    help="Add why this config: its evidence, its rivals, and where it was measured.",
)
@click.option(
    "--require",
    type=click.Choice(["exact"]),
    help="Exit 3 unless every problem has a record measured on this device: source exact or shipped.",
)
@click.option("--json", "as_json", is_flag=True, help="One list of objects.")
def command(
    m: tuple[int, ...] | None,
    device: str,
    db: str | None,
    shapes: tuple[str, ...],
    serving: tuple[str, ...],
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    n: int | None,
    k: int | None,
    explain: bool,
    require: str | None,
    policy: str | None,
    as_json: bool,
    **layers: Any,
) -> None:
    """Show the config that each layer runs with.

    That is what a model gets when it loads. The source says where it comes from: `exact`, a record of the
    database; `shipped`, a record that autotune carries; `predicted`, what a model
    of time expects to be the fastest, with that time; `default`, the kernel's own choice; `policy`, what the
    policy asks for.
    """
    if n is not None or k is not None:
        if n is None or k is None or shapes or serving:
            raise click.UsageError("--n and --k go together, and in place of --shapes.")
        shapes = (f"n={n},k={k}",)
    served = served_tokens(m, serving, max_num_seqs, max_num_batched_tokens)
    chosen = chosen_shapes(shapes, serving=serving, **layers)
    from autotune.models.advice import sweep_command
    from autotune.records.lookup import Lookup

    found = chosen_device(device)
    tokens = chosen_tokens(m, found, served)
    lookup = Lookup(found, db, policy=policy_in_force(policy))
    asked = (Problem(shape.layer, each) for shape in chosen for each in tokens)
    problems = asked if m else answered_problems(chosen, tokens, lookup)
    answers = [lookup.answer(problem) for problem in problems]
    if as_json:
        evidence = [explanation.fields(each, lookup.explain(each)) if explain else {} for each in answers]
        shown = [_fields(answer) | more for answer, more in zip(answers, evidence, strict=True)]
        click.echo(json.dumps(shown, indent=2))
    elif explain:
        click.echo("\n\n".join(explanation.lines(each, lookup.explain(each)) for each in answers))
    else:
        click.echo(_table(answers, chosen))
    if all(answer.source == "default" for answer in answers):
        advised = sweep_command((shape.layer for shape in chosen), found.kind == "cpu", db, m)
        click.echo(f"nothing is tuned here; to tune: {advised}", err=True)
    unverified = [answer for answer in answers if answer.unverified is not None]
    if unverified:
        of = f"{len(unverified)} of {counted(len(answers), 'problem')}"
        click.echo(f"unverified: {of}; the first was {unverified[0].unverified}", err=True)
    unmet = [answer for answer in answers if answer.source not in _MEASURED]
    if require and unmet:
        first = f"{unmet[0].problem} is answered by {unmet[0].source}"
        of = f"{len(unmet)} of {counted(len(answers), 'problem')}"
        click.echo(f"without an exact record: {of}; the first: {first}", err=True)
        click.get_current_context().exit(_REQUIREMENT_NOT_MET)


def _fields(answer: Answer) -> dict[str, Any]:
    return {
        **problem_fields(answer.problem),
        "device": answer.device,
        "config": str(answer.config),
        "median_us": answer.median_us,
        "default_us": answer.default_us,
        "source": answer.source,
        "expected_us": _expected(answer),
        "unverified": answer.unverified,
    }


def _expected(answer: Answer) -> list[float] | None:
    """What a predicted config is expected to take, and from where to where 8 of 10 such times lie."""
    found = answer.prediction
    return None if found is None else [found.us, found.low_us, found.high_us]


def _table(answers: Sequence[Answer], shapes: Sequence[Shape]) -> str:
    header = ("layer", "m", "source", "us", "default us", "config")
    rows = [
        (
            layer_name(answer.problem.layer, shapes),
            str(answer.problem.m),
            answer.source,
            microseconds(answer.prediction.us if answer.prediction else answer.median_us),
            microseconds(answer.default_us),
            str(answer.config),
        )
        for answer in answers
    ]
    return table(header, rows)
