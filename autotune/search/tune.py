"""Tunes one problem: its candidates compiled, measured, and the winner made a record with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from autotune.bench.noise import DISTURBED, why_noisy
from autotune.families import registry
from autotune.families.protocol import Plan
from autotune.jit.building import build_all
from autotune.jit.unit import Unit
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.errors import CompileError, LaunchError
from autotune.values.layer import Problem
from autotune.values.record import DEFAULT_MODE, Evidence, Mode, Record, Trial

if TYPE_CHECKING:
    from autotune.bench.measure import Measured
    from autotune.bench.operands import Operands
    from autotune.bench.peer import MakePeer

_T = TypeVar("_T")

Cubins = dict[str, bytes | CompileError]
Progress = Callable[[str, int, int], None]
Notice = Callable[[Config | None], None]


@dataclass(frozen=True, slots=True)
class Tuned:
    """The trials of one problem and its record; without a record, `note` says why.

    It is `noisy` when what was measured cannot be believed: then only what did not pass is a trial. For
    `waited_s` seconds nothing could be measured, because others had the device or the worker was not there.
    """

    trials: tuple[Trial, ...]
    record: Record | None
    note: str = ""
    noisy: bool = False
    waited_s: float = 0.0

    @property
    def failed(self) -> int:
        """How many configs failed or were wrong."""
        return sum(trial.status in ("failed", "wrong") for trial in self.trials)

    def learned(self, tokens: Sequence[int]) -> Tuned:
        """With the evidence that the candidates are what did best for these numbers of tokens."""
        if self.record is None or self.record.evidence is None or not tokens:
            return self
        evidence = replace(self.record.evidence, learned_from=tuple(tokens))
        return replace(self, record=replace(self.record, evidence=evidence))

    def noted(self, note: str) -> Tuned:
        """With one more note, if it says something."""
        return replace(self, note="; ".join(filter(None, (self.note, note))))


def compile_candidates(
    chosen: Mapping[Problem, Sequence[Config]],
    device: Device,
    progress: Progress | None = None,
    on_ready: Callable[[Problem, Cubins], None] = lambda *_: None,
) -> dict[Problem, Cubins]:
    """The cubin, or the error, of every unit that each problem's configs need, by the unit's key.

    `on_ready` gets those of a problem as soon as all are there. Few tokens come first; of equally many the
    problem with the least to compile, and of those the largest. Nothing waits at a boundary between problems.
    """
    needed: dict[Problem, dict[str, Unit]] = {}
    listed: set[str] = set()
    built: Cubins = {}
    ready: dict[Problem, Cubins] = {}

    def count() -> None:
        if progress is not None:
            progress("compile", len(built), len(listed))

    def finish(problem: Problem) -> None:
        ready[problem] = {key: built[key] for key in needed[problem]}
        on_ready(problem, ready[problem])

    def units() -> Iterator[Unit]:
        for m in sorted({problem.m for problem in chosen}):
            bucket = {each: _units_of(each, chosen[each], device) for each in chosen if each.m == m}
            needed.update(bucket)
            listed.update(*bucket.values())
            count()
            for problem in sorted(bucket, key=lambda each: (len(bucket[each]), -each.operations)):
                if not bucket[problem]:  # a CPU's kernels are built in
                    finish(problem)
                yield from bucket[problem].values()

    def on_done(key: str, cubin: bytes | CompileError) -> None:
        built[key] = cubin
        count()
        for problem, keys in needed.items():
            if key in keys and keys.keys() <= built.keys():
                finish(problem)

    build_all(units(), on_done=on_done, processes=True)
    return ready


def _units_of(problem: Problem, configs: Iterable[Config], device: Device) -> dict[str, Unit]:
    units = (registry.family_of(config).unit(config, problem.layer, device) for config in configs)
    return {unit.key: unit for unit in units if unit is not None}


def tune(
    problem: Problem,
    operands: Operands,
    candidates: Sequence[Config],
    cubins: Cubins,
    budget_s: float | None = None,
    crashed: Mapping[Config, str] = MappingProxyType({}),
    mode: Mode = DEFAULT_MODE,
    notice: Notice = lambda _: None,
    peer: MakePeer | None = None,
    energy: bool = False,
) -> Tuned:
    """Measure the candidates, the first of which is the default config, and choose the winner.

    With a budget those that are predicted to be the fastest come right after the first two, for it may end
    before the others.
    Those that have `crashed` fail for the reason given there and are not run again. `notice` is called with
    each of the others before anything of it runs; None stands for several at once. What `peer` makes is timed
    beside them, and its time is part of the record's evidence; so is, with `energy`, that of the fastest few.
    """
    from autotune.bench.measure import measure

    device = operands.device

    def plan_of(config: Config) -> Plan:
        if config in crashed:
            raise LaunchError(crashed[config])
        notice(config)
        family = registry.family_of(config)
        unit = family.unit(config, problem.layer, device)
        cubin = None if unit is None else cubins[unit.key]
        if isinstance(cubin, CompileError):
            raise cubin
        return family.plan(config, problem.layer, device, cubin)

    default, *others = candidates
    promising = others if budget_s is None else _promising(problem, device, others)
    measured = measure(
        problem, operands, promising, default, plan_of, budget_s, mode, lambda: notice(None), peer, energy
    )
    tuned = _choose(problem, device, default, _in_order(_named(measured, device), candidates))
    busy = ""
    if measured.others:
        users = ", ".join(map(str, measured.others))
        busy = f"processes {users} used {device.name} meanwhile, so the times may be off"
    return tuned.noted(measured.note).noted(busy)


def _promising(problem: Problem, device: Device, others: Sequence[Config]) -> list[Config]:
    """The first, which may be the stored winner; then those that are predicted to be the fastest."""
    from autotune.prediction.finding import predictor_for

    return [*others[:1], *predictor_for(device).ordered(problem, others[1:])]


def _in_order(measured: Measured, configs: Sequence[Config]) -> Measured:
    """The trials in the order of the configs, of which the simplest wins a tie."""
    places = {config: place for place, config in enumerate(configs)}
    return replace(measured, trials=tuple(sorted(measured.trials, key=lambda each: places[each.config])))


def _named(measured: Measured, device: Device) -> Measured:
    """The trials with what names their kernels."""
    trials = (
        replace(trial, source_hash=registry.kernel_hash(trial.config, trial.problem, device))
        for trial in measured.trials
    )
    return replace(measured, trials=tuple(trials))


def _choose(problem: Problem, device: Device, default_config: Config, measured: Measured) -> Tuned:
    from autotune.bench.decide import decide
    from autotune.bench.roofline import floor_us

    trials = measured.trials
    decision = decide(trials, default_config)
    if decision is None:
        errors = "; ".join(sorted({f"{trial.status}: {trial.error}" for trial in trials})[:2])
        return Tuned(trials, None, f"no config passed: {errors}")
    default = next(trial for trial in trials if trial.config == default_config)
    note = ""
    if default.status != "ok":
        note = f"the default config {default_config} did not pass: {default.error}"
    winner = decision.winner
    gain = decision.gain
    record = Record(
        problem=problem,
        device=device.name,
        arch=device.arch,
        config=winner.config,
        median_us=_known(winner.median_us),
        low_us=_known(winner.low_us),
        high_us=_known(winner.high_us),
        default_config=default_config,
        default_us=_known(winner.median_us) if note else _known(default.median_us),
        source_hash=_known(winner.source_hash),
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        mode=winner.mode,
        evidence=Evidence(
            rounds=len(winner.samples_us),
            gain=(gain.median, gain.low, gain.high),
            ties=tuple(str(trial.config) for trial in decision.ties),
            runners_up=tuple((str(trial.config), _known(trial.median_us)) for trial in decision.runners_up),
            clock_mhz=winner.clock_mhz,
            deviation=winner.deviation,
            floor_us=floor_us(problem, device, _known(winner.median_us), winner.mode),
            temperature_c=measured.temperature_c,
            power_w=measured.power_w,
            peers=measured.peers,
            energy=measured.energy,
            candidates=len(trials),
        ),
    )
    noise = [] if (reason := why_noisy(record)) is None else [reason]
    if winner.config in measured.disturbed:
        noise.append(DISTURBED)
    if not noise:
        return Tuned(trials, record, note)
    # What did not pass need not be measured again.
    certain = tuple(trial for trial in trials if trial.status in ("failed", "wrong"))
    return Tuned(certain, None, f"noisy: {'; '.join(noise)}", noisy=True)


def _known(value: _T | None) -> _T:
    assert value is not None  # a trial that passed has every time and a name
    return value
