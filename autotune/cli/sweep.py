"""`autotune sweep`: tune a model's problems and store the winners."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.options import (
    check_counter,
    check_devices,
    chosen_executors,
    chosen_shapes,
    chosen_tokens,
    fleet_options,
    names_no_layer,
    seconds,
    served_tokens,
    serving_options,
    tuned_problems,
)
from autotune.cli.output import Rows, model_name, problem_fields
from autotune.console.progress import ProblemProgress
from autotune.console.text import microseconds
from autotune.values.counts import counted
from autotune.values.errors import AutotuneError
from autotune.values.extra import Extra
from autotune.values.paths import database_url, shown
from autotune.values.record import DEFAULT_MODE, MODES, Mode

if TYPE_CHECKING:
    from autotune.checkpoints.shapes import Shape
    from autotune.search.executor import Executor
    from autotune.search.sweep import Outcome
    from autotune.store.store import Store
    from autotune.values.device import Device
    from autotune.values.layer import Problem
    from autotune.values.record import ConfigJoules, Record

# What a problem takes at least, until it has a record.
_LEAST_S = {"cpu": 1.0, "cuda": 0.1}

_EXAMPLES = """\b
Examples:
  autotune sweep --shapes llama7b
  autotune sweep --shapes ./my-model --m 1,16 --tp 2 --device all
  autotune sweep --shapes n=4096,k=4096,group_size=64 --budget 60s --json
  autotune sweep --serving ./my-model --tp 2
  autotune sweep --recheck
  autotune sweep --stale
  autotune sweep --shapes llama7b --kernel ./kernels.py:my_gemm"""


@click.command(epilog=_EXAMPLES)
@fleet_options
@serving_options
@click.option(
    "--budget",
    callback=seconds,
    metavar="DURATION",
    help="Time to share among the problems, as 60s; what does not begin in it is left to the next sweep. "
    "Waiting for others is not counted.  [default: 90s on a CPU, none on a GPU]",
)
@click.option(
    "--kernel",
    metavar="FILE.py:NAME",
    help="Tune a kernel of your own, decorated with @autotune.kernel, instead of autotune's; or MODULE:NAME.",
)
@click.option(
    "--recheck",
    is_flag=True,
    help="Only measure stored winners, their rivals and the default again; without --shapes all of them.",
)
@click.option(
    "--stale",
    is_flag=True,
    help="In place of --shapes: all that has records, but none of the kernels of this autotune.",
)
@click.option(
    "--energy",
    is_flag=True,
    help="Measure the energy of a call too, of those that are nearly the fastest; a second for each of up to "
    "four. NVIDIA GPUs only.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    help="How calls are timed: in a graph that rotates over weights, each behind a kernel that writes its x, "
    "as in a model; in such a graph one after the other; on hot weights; or one by one after random idle "
    f"times, as requests come.  [default: {DEFAULT_MODE}]",
)
@click.option("--json", "as_json", is_flag=True, help="JSON Lines: each problem as it finishes.")
def command(
    m: tuple[int, ...] | None,
    device: str,
    executor: str,
    address: str | None,
    allow_busy: bool,
    db: str | None,
    budget: float | None,
    serving: tuple[str, ...],
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    kernel: str | None,
    recheck: bool,
    stale: bool,
    energy: bool,
    mode: Mode | None,
    as_json: bool,
    **layers: Any,
) -> None:
    """Tune a model's layers and store the winners.

    Every config is verified before it is timed, and the default config is always among them. Problems that
    the database already has for the running kernels are not measured again, so a sweep that was
    interrupted goes on where it stopped; configs that are new since race against the stored winner.
    Times of different modes are never compared: each mode has records of its own.

    Several devices of one model share the problems, and all configs of a problem run on one of them. Devices
    of different models are swept one model after the other.

    After a driver or compiler change, --recheck confirms stored records in seconds: it keeps, replaces or
    drops each, and says why. After an upgrade of autotune, --stale tunes again what changed.
    """
    served = served_tokens(m, serving, max_num_seqs, max_num_batched_tokens)
    layers["serving"] = serving
    shapes = _shapes(recheck, stale, mode, layers)
    extra = Extra(_times_vllm(serving), energy)
    from autotune.search.executor import by_model

    with contextlib.ExitStack() as stack:
        executors = _executors(kernel, device, executor, address, allow_busy, db)
        for each in executors:
            stack.enter_context(each)
            check_counter(each.device, energy)
        groups = by_model(executors)
        for each in groups[0]:
            each.start()  # it takes seconds; so do the database and the spaces
        from autotune.cli.recheck import run_recheck
        from autotune.search.sweep import default_budget_s
        from autotune.store.store import Store

        store = stack.enter_context(Store.open(db))
        plans = [_chosen(kernel, shapes, stale, m, served, group[0], store) for group in groups]
        progress = stack.enter_context(_progress(plans, executors))
        for group, (problems, named) in zip(groups, plans, strict=True):
            limit_s = default_budget_s(group[0].device.kind) if budget is None else budget
            share_s = None if limit_s is None else limit_s / len(groups)
            if not problems:
                click.echo(f"nothing of {group[0].device.name} in {store.name} is stale", err=True)
            elif recheck:
                run_recheck(problems, named, group, store, progress, share_s, as_json, extra)
            else:
                _run(problems, named, group, store, progress, share_s, as_json, mode or DEFAULT_MODE, extra)
        if sys.stderr.isatty():
            progress.show(f"to see it: autotune serve --db {shlex.quote(store.name)}", err=True)


def _shapes(recheck: bool, stale: bool, mode: Mode | None, layers: dict[str, Any]) -> list[Shape] | None:
    """The layers that the options name; None for those of records."""
    unnamed = names_no_layer(**layers)
    if stale and (recheck or not unnamed):
        other = "--recheck" if recheck else "--shapes and what else chooses layers"
        raise click.UsageError(f"--stale tunes what the database has records of; leave {other} out.")
    if recheck and mode is not None:
        raise click.UsageError("--recheck times each record in its own mode; leave --mode out.")
    return None if (recheck or stale) and unnamed else chosen_shapes(**layers)


def _times_vllm(serving: Sequence[str]) -> bool:
    """Whether vLLM's own kernels are to be timed too; that vLLM is missing is said on stderr."""
    if not serving:
        return False
    from autotune.search.environment import vllm_is_here

    if not vllm_is_here():
        click.echo("vLLM is not in this environment, so its own kernels are not timed beside ours", err=True)
    return vllm_is_here()


def _executors(
    kernel: str | None, device: str, executor: str, address: str | None, allow_busy: bool, db: str | None
) -> Sequence[Executor]:
    """Those of the options, with autotune's families or the kernel."""
    if kernel is None:
        return chosen_executors(device, executor, address, allow_busy, db)
    if executor != "local":
        raise click.UsageError("--kernel names a file of this machine; leave --executor out.")
    if not all(kernel.rpartition(":")):
        raise click.UsageError(f"--kernel {kernel} is not FILE.py:NAME or MODULE:NAME.")
    check_devices(device)
    from autotune.executors.kernel import kernel_executors

    return kernel_executors(kernel, device, allow_busy, shown(database_url(db)))


def _chosen(
    kernel: str | None,
    shapes: Sequence[Shape] | None,
    stale: bool,
    m: tuple[int, ...] | None,
    served: tuple[int, ...] | None,
    executor: Executor,
    store: Store,
) -> tuple[Sequence[Problem], Sequence[Shape]]:
    """The problems of these shapes, or those that have records, with the shapes that name them."""
    if shapes is None:
        from autotune.cli.recheck import stale_shapes, stored_shapes

        return (stale_shapes if stale else stored_shapes)(store, executor, m)
    problems = tuned_problems(shapes, chosen_tokens(m, executor.device, served))
    return _doable(kernel, problems, executor.device), shapes


def _progress(
    plans: Sequence[tuple[Sequence[Problem], Sequence[Shape]]], executors: Sequence[Executor]
) -> ProblemProgress:
    """Of all problems together."""
    total = sum(len(problems) for problems, _ in plans)
    return ProblemProgress(
        total, executors, list(dict.fromkeys(shape for _, named in plans for shape in named))
    )


def _doable(kernel: str | None, problems: Sequence[Problem], device: Device) -> Sequence[Problem]:
    """Those that the kernel can do; that there are others is said on stderr."""
    if kernel is None:
        return problems
    from autotune.families.external import load_kernel

    reasons = {problem: load_kernel(kernel).why_not(problem, device) for problem in problems}
    done = [problem for problem, reason in reasons.items() if reason is None]
    left_out = [f"{problem}: {reason}" for problem, reason in reasons.items() if reason is not None]
    if left_out:
        of = f"{len(left_out)} of {counted(len(problems), 'problem')}"
        note = f"{kernel} leaves out {of}; the first: {left_out[0]}"
        if not done:
            raise AutotuneError(note)
        click.echo(note, err=True)
    return done


def _run(
    problems: Sequence[Problem],
    shapes: Sequence[Shape],
    executors: Sequence[Executor],
    store: Store,
    progress: ProblemProgress,
    budget_s: float | None,
    as_json: bool,
    mode: Mode,
    extra: Extra,
) -> None:
    """Sweep the problems on executors of one device model, and print what became of each."""
    from autotune.search.sweep import sweep

    rows = _rows(shapes, extra)

    def text(outcome: Outcome) -> str:
        if as_json:
            return json.dumps(_fields(outcome, executors[0].device))
        return rows.row(outcome.problem, *_cells(outcome, extra))

    begin = time.monotonic()
    of = f"{counted(len(problems), 'problem')} on {model_name(executors)}"
    progress.show(f"{of}, into {store.name}", err=True)
    _warn_of_budget(problems, executors, budget_s, progress)
    running = sweep(problems, store, executors, budget_s, progress.stage, mode, extra)
    if not as_json:
        progress.show(rows.head())
    outcomes = progress.follow(running, lambda outcome: outcome.record is not None, text)
    progress.show(_summary(outcomes, time.monotonic() - begin), err=True)
    if all(outcome.record is None for outcome in outcomes):
        raise AutotuneError(f"no problem has a record; the first: {outcomes[0].note}")


def _warn_of_budget(
    problems: Sequence[Problem],
    executors: Sequence[Executor],
    budget_s: float | None,
    progress: ProblemProgress,
) -> None:
    """Say on stderr that the budget is hardly enough for all."""
    if budget_s is None:
        return
    each_s, least_s = budget_s * len(executors) / len(problems), _LEAST_S[executors[0].device.kind]
    if each_s < least_s:
        progress.show(
            f"a budget of {budget_s:g} s is {each_s:.2f} s for each problem, and one takes {least_s:g} s or "
            "more: those whose turn does not come are left to the next sweep",
            err=True,
        )


def _fields(outcome: Outcome, device: Device) -> dict[str, Any]:
    record = outcome.record
    return {
        **problem_fields(outcome.problem),
        "device": device.name,
        "config": None if record is None else str(record.config),
        "median_us": None if record is None else record.median_us,
        "low_us": None if record is None else record.low_us,
        "high_us": None if record is None else record.high_us,
        "default_config": None if record is None else str(record.default_config),
        "default_us": None if record is None else record.default_us,
        "mode": None if record is None else record.mode,
        "peers": [list(each) for each in _peers(record)],
        "energy": [list(each) for each in _energy(record)],
        "resumed": outcome.resumed,
        "trials": outcome.trials,
        "failed": outcome.failed,
        "pruned": outcome.pruned,
        "elapsed_s": round(outcome.elapsed_s, 3),
        "noisy": outcome.noisy,
        "note": outcome.note,
    }


def _peers(record: Record | None) -> tuple[tuple[str, float], ...]:
    return () if record is None or record.evidence is None else record.evidence.peers


def _energy(record: Record | None) -> tuple[ConfigJoules, ...]:
    return () if record is None or record.evidence is None else record.evidence.energy


def _rows(shapes: Sequence[Shape], extra: Extra) -> Rows:
    more = [("vLLM us", 8)] * extra.peer + [("mJ", 8)] * extra.energy
    return Rows(shapes, ("us", 8), ("default us", 8), ("gain", 6), *more, ("config", 0))


def _cells(outcome: Outcome, extra: Extra) -> Sequence[str]:
    """Of the energy, the winner's."""
    record = outcome.record
    if record is None:
        return ("-", "-", "-", *("-",) * (extra.peer + extra.energy), outcome.note)
    peers = " ".join(microseconds(time) for _, time in _peers(record)) or "-"
    taken = next(
        (f"{1e3 * joules:.3g}" for name, joules, _, _ in _energy(record) if name == str(record.config)), "-"
    )
    times = microseconds(record.median_us), microseconds(record.default_us)
    gain = f"{record.default_us / record.median_us:.2f}x"
    more = [peers] * extra.peer + [taken] * extra.energy
    return (*times, gain, *more, f"{record.config}  {outcome.note}".rstrip())


def _summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    from autotune.search.fleet import OUT_OF_TIME

    stored = sum(outcome.record is not None for outcome in outcomes)
    resumed = sum(outcome.resumed for outcome in outcomes)
    trials, failed = sum(each.trials for each in outcomes), sum(each.failed for each in outcomes)
    noisy = sum(outcome.noisy for outcome in outcomes)
    pruned = sum(each.pruned for each in outcomes)
    untried = f", {pruned} left out, as predicted to be slow" if pruned else ""
    late = sum(outcome.note == OUT_OF_TIME for outcome in outcomes)
    left = [f"{noisy} noisy"] * bool(noisy) + [f"{late} not begun"] * bool(late)
    again = f"\nleft to do: {', '.join(left)}; run the same command again" if left else ""
    return (
        f"{stored} of {counted(len(outcomes), 'problem')} stored, {resumed} of them from before; "
        f"{counted(trials, 'config')} tried, {failed} failed{untried}, {seconds:.0f} s{again}"
    )
