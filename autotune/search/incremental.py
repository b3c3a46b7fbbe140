"""What is still to be measured of a problem, given what the store has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autotune.bench.noise import why_noisy
from autotune.families import registry
from autotune.search.environment import vllm_is_here
from autotune.search.narrow import worth_racing
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.errors import ConfigError
from autotune.values.extra import TIMES_ONLY, Extra
from autotune.values.layer import COARSE, Problem, buckets_for
from autotune.values.record import MODES, SERVED, Environment, Mode, Record, Trial


def current_records(
    problem: Problem, device: Device, store: Store, environment: Environment, mode: Mode | None = None
) -> list[Record]:
    """The problem's records of the environment's families, today's kernels and the mode, the newest last.

    Without a mode they are of the one that look-up prefers, and the last one is what a model gets.
    """
    current = [
        record
        for record in store.records(device, problem)
        if record.config.family in environment.sources and registry.is_current(record, device)
    ]
    known = {record.mode for record in current}
    mode = mode or next((each for each in (*SERVED, *MODES) if each in known), None)
    return [record for record in current if record.mode == mode]


def current_record(
    problem: Problem, device: Device, store: Store, environment: Environment, mode: Mode
) -> Record | None:
    """The newest current record of the mode, None where there is none or it is noisy."""
    newest = next(reversed(current_records(problem, device, store, environment, mode)), None)
    return newest if newest is not None and why_noisy(newest) is None else None


def last_record(problem: Problem, device: Device, store: Store, environment: Environment) -> Record | None:
    """The problem's newest record of the environment's families, whatever kernel it is of."""
    records = reversed(store.records(device, problem))
    return next((record for record in records if record.config.family in environment.sources), None)


def current_trials(
    problem: Problem, device: Device, store: Store, environment: Environment, mode: Mode
) -> list[Trial]:
    """The problem's trials of the environment's families and today's kernels, timed in the mode."""
    return [
        trial
        for trial in store.trials(problem, device)
        if trial.mode == mode
        and trial.config.family in environment.sources
        and registry.would_repeat(trial, device)
    ]


def neighbours(
    problem: Problem, device: Device, store: Store, environment: Environment, mode: Mode
) -> tuple[Record, ...]:
    """The records of the powers of two around a finer bucket; none while one of them is missing."""
    if problem.m in COARSE:
        return ()
    above = buckets_for(problem.m)[-1]
    around = (Problem(problem.layer, m) for m in (above // 2, above))
    found = [current_record(each, device, store, environment, mode) for each in around]
    return () if None in found else tuple(filter(None, found))


def candidates_to_do(
    problem: Problem,
    device: Device,
    store: Store,
    environment: Environment,
    mode: Mode,
    extra: Extra = TIMES_ONLY,
    around: Sequence[Record] = (),
) -> list[Config] | None:
    """The configs to measure now, the default config first, then the incumbent; None for none.

    They are of the problem's whole space, or where it has neighbours `around` it of what did best there.
    A problem is done when it has a record of today's kernel and the mode against today's default config, and
    such a trial for every config. Else what lacks a trial is raced against the default and the incumbent: the
    stored winner, or the best trial when the winner's own kernel has changed. A problem where nothing ever
    passed, or whose record is noisy, is measured whole. A new driver or compiler makes nothing new: a recheck
    confirms. Where the record lacks something of `extra`, those two race again, because times of different
    rounds are never compared.
    """
    names = environment.sources
    whole = (
        worth_racing(problem, device, around, names)
        if around
        else registry.candidates(problem, device, names)
    )
    records = current_records(problem, device, store, environment, mode)
    if records and why_noisy(records[-1]):
        return whole
    trials = current_trials(problem, device, store, environment, mode)
    tried = {trial.config for trial in trials}
    if (
        tried.issuperset(whole)
        and records
        and records[-1].default_config == whole[0]
        and not lacks(records[-1], extra)
    ):
        return None
    stored = [record.config for record in reversed(records)]
    incumbent = next(
        (config for config in (*stored, *by_time(trials)) if is_valid(config, problem, device)), None
    )
    if incumbent is None:
        return whole
    default, *others = whole
    # The incumbent goes before the others, so that a budget that ends early has it compared at least.
    missing = (config for config in others if config not in tried)
    return list(dict.fromkeys((default, incumbent, *missing)))


def lacks(record: Record | None, extra: Extra) -> bool:
    """Whether the evidence of the record lacks something of that."""
    has = _has(record)
    return (extra.peer and not has.peer) or (extra.energy and not has.energy)


def _has(record: Record | None) -> Extra:
    if record is None or record.evidence is None:
        return Extra()
    return Extra(bool(record.evidence.peers), bool(record.evidence.energy))


def wanted(record: Record | None, device: Device, asked: Extra = TIMES_ONLY) -> Extra:
    """What is to be measured besides times with what may replace the record, as far as that can be had.

    It is what a user asked for, and what the record, stale or not, has, which a new one would lose.
    """
    has = _has(record)
    peer, energy = asked.peer or has.peer, asked.energy or has.energy
    return Extra(peer and vllm_is_here(), energy and device.kind == "cuda")


def outlasts(record: Record | None, candidates: Sequence[Config], trials: Iterable[Trial]) -> bool:
    """Whether the record stays whatever else won, because its config's turn never came or was disturbed.

    Neither a budget that ended early nor a device in trouble says anything of it, nor does a noisy race.
    """
    if record is None or record.config not in candidates:
        return False
    turns = (trial for trial in trials if trial.status != "pruned" or trial.median_us is not None)
    return all(trial.config != record.config for trial in turns)


def was_for_nothing(
    record: Record | None, candidates: Sequence[Config], winner: Record | None, extra: Extra
) -> bool:
    """Whether a race for something of `extra` alone got none: then the record stays, with richer evidence."""
    if record is None or not lacks(winner, extra):
        return False
    return {record.config, record.default_config}.issuperset(candidates)


def superseded(winner: Record | None, records: Iterable[Record]) -> list[Record]:
    """Those of the problem's current records that go: to a winner all of other kernels give way.

    Without one those that are noisy go.
    """
    if winner is None:
        return [record for record in records if why_noisy(record)]
    return [record for record in records if record.source_hash != winner.source_hash]


def by_time(trials: Iterable[Trial]) -> list[Config]:
    """The configs of the trials that passed, each once, the fastest first."""
    timed = [(trial.median_us, trial.config) for trial in trials if trial.status == "ok" and trial.median_us]
    return list(dict.fromkeys(config for _, config in sorted(timed)))


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Whether the config can run the problem on the device, as its family is now."""
    try:
        return registry.family_of(config).reject(config, problem, device) is None
    except ConfigError:
        return False
