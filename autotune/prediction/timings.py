"""The timed configs that a fit is made from: trials of a database, and what records say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from autotune.families import registry
from autotune.prediction.fitting import Timing
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.record import DEFAULT_MODE, Record, Trial

if TYPE_CHECKING:
    from autotune.store.store import Store


def of_store(store: Store, device: Device) -> list[Timing]:
    """Every trial of the device's problems that today's kernels would repeat, whatever driver it ran with.

    Of several of one problem and config the last that was raced to the end counts, else the last.
    """
    problems = sorted({record.problem for record in store.records(device)})
    trials = (trial for problem in problems for trial in store.trials(problem, device))
    return [_timing(trial, us) for trial, us in _last(trials, device)]


def of_records(records: Iterable[Record], device: Device) -> list[Timing]:
    """What current records of the device say: of the winner, the default, and those that came near."""
    found: dict[tuple[object, Config], Timing] = {}
    for record in records:
        if (
            record.device == device.name
            and record.mode == DEFAULT_MODE
            and registry.is_current(record, device)
        ):
            for config, us in _said(record):
                found.setdefault((record.problem, config), Timing(record.problem, config, us))
    return list(found.values())


def merged(first: Iterable[Timing], *others: Iterable[Timing]) -> list[Timing]:
    """One timing for each problem and config, that of the first who has it."""
    found = {(each.problem, each.config): each for each in first}
    for other in others:
        for each in other:
            found.setdefault((each.problem, each.config), each)
    return list(found.values())


def _said(record: Record) -> Iterator[tuple[Config, float]]:
    yield record.config, record.median_us
    yield record.default_config, record.default_us
    if record.evidence is not None:
        for text, us in record.evidence.runners_up:
            yield Config.parse(text), us


def _last(trials: Iterable[Trial], device: Device) -> Iterator[tuple[Trial, float]]:
    last: dict[tuple[object, Config], tuple[Trial, float]] = {}
    for trial in trials:
        if trial.median_us is None or trial.mode != DEFAULT_MODE or not registry.would_repeat(trial, device):
            continue
        key = trial.problem, trial.config
        if trial.status == "ok" or key not in last or last[key][0].status != "ok":
            last[key] = trial, trial.median_us
    return iter(last.values())


def _timing(trial: Trial, us: float) -> Timing:
    return Timing(trial.problem, trial.config, us)
