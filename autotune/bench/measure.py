"""Measures the candidates of one problem: each verified first, then screened, then raced."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from autotune.bench.budget import Budget
from autotune.bench.energy import Counter, measure_energy
from autotune.bench.monitor import monitor_for
from autotune.bench.operands import Operands
from autotune.bench.peer import Beside, MakePeer, examine_peer
from autotune.bench.race import Rounds, Runner, race
from autotune.bench.statistics import median_interval
from autotune.bench.timer import GraphTimer, timer_for
from autotune.bench.verify import Verifier
from autotune.families.protocol import Plan
from autotune.values.config import Config
from autotune.values.errors import AutotuneError
from autotune.values.layer import COARSE, Problem
from autotune.values.record import DEFAULT_MODE, ConfigJoules, Mode, Trial

_SCREEN_ROUNDS = 3
_FINALISTS = 12
_NEAR = 1.08
_WEIGHED = 4
_SCREEN_SHARE = 0.6
# A race on a GPU without a budget may last so long, screening included: for each config, and in all.
_GPU_RACE_S_EACH = 0.05
_GPU_RACE_S = 2.0


@dataclass(slots=True)
class _Candidate:
    config: Config
    runner: Runner
    deviation: float | None
    screened_us: float = math.inf


@dataclass(frozen=True, slots=True)
class Measured:
    """One trial per candidate, the ids of other processes that used the device meanwhile, and its medians.

    `peers` are kernels of others, timed beside them, each with its median in microseconds; `energy` are
    configs with the joules of a call and the ends of their interval. `note` says what could not be measured.
    Others took CPU time from most samples of those that are `disturbed`.
    """

    trials: tuple[Trial, ...]
    others: tuple[int, ...]
    temperature_c: int | None
    power_w: int | None
    peers: tuple[tuple[str, float], ...] = ()
    note: str = ""
    disturbed: tuple[Config, ...] = ()
    energy: tuple[ConfigJoules, ...] = ()


def measure(
    problem: Problem,
    operands: Operands,
    candidates: Sequence[Config],
    default: Config,
    plan_of: Callable[[Config], Plan],
    budget_s: float | None = None,
    mode: Mode = DEFAULT_MODE,
    before_race: Callable[[], None] = lambda: None,
    peer: MakePeer | None = None,
    energy: bool = False,
) -> Measured:
    """One trial per candidate, in the order in which they were given, `default` first.

    All candidates that verify are screened in a few rounds; those near the fastest race, and `default` with
    them; `before_race` is called when all have run on their own. Within `budget_s` the candidates are taken
    in their order; whose turn never comes is `pruned`. What `peer` makes is verified and timed beside them.
    With `energy`, that of the fastest few is measured after the race, outside of the budget.
    """
    whole = Budget(budget_s)
    screening = Budget(None if budget_s is None else budget_s * _SCREEN_SHARE)
    trials: dict[Config, Trial] = {}
    passed: list[_Candidate] = []
    examiner = _Examiner(problem, operands, plan_of, mode)
    for config in (default, *(config for config in candidates if config != default)):
        if passed and screening.spent():
            reason = "the time budget ended before its turn"
            trials[config] = Trial(problem, config, "pruned", error=reason, mode=mode)
            continue
        examined = examiner.examine(config)
        if isinstance(examined, _Candidate):
            passed.append(examined)
        trials[config] = (
            examined if isinstance(examined, Trial) else Trial(problem, config, "pruned", mode=mode)
        )
    monitor = monitor_for(operands.device)
    rounds = Rounds(monitor)
    beside, taken = Beside(), Taken()
    if passed:
        beside = examiner.beside(peer)
        before_race()
        limit = whole
        if budget_s is None and operands.device.kind == "cuda":
            limit = Budget(min(_GPU_RACE_S, _GPU_RACE_S_EACH * len(passed)))
        others = [] if beside.runner is None else [beside.runner]
        finalists = _screen(passed, rounds, default, limit, others)
        kept = next((each.runner for each in finalists if each.config == default), None)
        race([each.runner for each in finalists], rounds, kept, limit.spent, others)
        if energy:
            taken = examiner.energy([each.config for each in _fastest(finalists)], monitor.joules)
    readings = rounds.readings
    clock_mhz = _median(reading.clock_mhz for reading in readings)
    for candidate in passed:
        trials[candidate.config] = _trial(problem, candidate, clock_mhz, mode)
    return Measured(
        tuple(trials.values()),
        tuple(sorted({other for reading in readings for other in reading.others})),
        _median(reading.temperature_c for reading in readings),
        _median(reading.power_w for reading in readings),
        beside.times,
        "; ".join(filter(None, (beside.note, taken.note))),
        tuple(each.config for each in passed if each.runner.timer.disturbed()),
        taken.energy,
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """The energy of calls, as `Measured` has it; or none, and `note` says why."""

    energy: tuple[ConfigJoules, ...] = ()
    note: str = ""


class _Examiner:
    """Verifies configs of one problem and makes their timers."""

    def __init__(
        self, problem: Problem, operands: Operands, plan_of: Callable[[Config], Plan], mode: Mode
    ) -> None:
        self._problem, self._operands, self._plan_of, self._mode = problem, operands, plan_of, mode
        *fewer, most = _verified_ms(problem.m)
        whole = Verifier(operands, most, seed=1)
        self._verifiers = [*(whole.first(m) for m in fewer), whole]
        self._activations = operands.activations(problem.m)

    def examine(self, config: Config) -> _Candidate | Trial:
        """A candidate ready to be timed, or the trial of one that must not be."""
        try:
            plan = self._plan_of(config)
            for verifier in self._verifiers:
                wrong = verifier.error(plan)
                if wrong is not None:
                    return self._refused(config, "wrong", wrong)
            timer = timer_for(plan, self._operands, self._activations, self._mode)
        except (AutotuneError, RuntimeError) as error:
            return self._refused(config, "failed", str(error).partition("\n")[0])
        deviation = max(verifier.deviation for verifier in self._verifiers)
        return _Candidate(config, Runner(timer), deviation)

    def beside(self, make: MakePeer | None) -> Beside:
        """The peer that `make` makes."""
        if make is None:
            return Beside()
        return examine_peer(make, self._verifiers, self._activations, self._mode)

    def energy(self, configs: Sequence[Config], counter: Counter) -> Taken:
        """What calls of the configs take, which have passed, one straight after the other in a graph."""
        measured: list[ConfigJoules] = []
        for config in configs:
            timer = GraphTimer(self._plan_of(config), self._operands.copies, self._activations)
            found = measure_energy(timer, counter)
            if found is None:
                return Taken(note=f"energy: NVML tells nothing of {self._operands.device.name}")
            measured.append((str(config), found.joules.median, found.joules.low, found.joules.high))
        return Taken(tuple(sorted(measured, key=lambda each: each[1])))

    def _refused(self, config: Config, status: str, reason: str) -> Trial:
        return Trial(self._problem, config, status, error=reason, mode=self._mode)


def _verified_ms(m: int) -> tuple[int, ...]:
    """The first and last number of tokens that a record of m may serve, where no finer bucket has one."""
    below = max((bucket for bucket in COARSE if bucket < m), default=0)
    return (m,) if below + 1 == m else (below + 1, m)


def _screen(
    passed: list[_Candidate], rounds: Rounds, default: Config, budget: Budget, beside: Sequence[Runner]
) -> list[_Candidate]:
    """The fastest few in some quick rounds, and the default, in the order of `passed`.

    They keep their samples, as do those `beside`: these rounds are the first of the race. The samples of the
    others are dropped.
    """
    runners = [*(candidate.runner for candidate in passed), *beside]
    for number in range(_SCREEN_ROUNDS):
        if number and budget.spent():
            break
        for runner, sample in zip(runners, rounds.run(runners), strict=True):
            runner.samples_us.append(sample)
    for candidate in passed:
        candidate.screened_us = min(candidate.runner.samples_us)
    ranked = sorted(passed, key=lambda candidate: candidate.screened_us)[:_FINALISTS]
    near = [each for each in ranked if each.screened_us <= _NEAR * ranked[0].screened_us]
    finalists = [each for each in passed if each in near or each.config == default]
    for candidate in passed:
        if candidate not in finalists:
            candidate.runner.samples_us.clear()
    return finalists


def _fastest(finalists: Sequence[_Candidate]) -> list[_Candidate]:
    """Of which energy is measured; it takes a second each."""
    best = min(each.runner.median_us for each in finalists)
    near = [each for each in finalists if each.runner.median_us <= _NEAR * best]
    return sorted(near, key=lambda each: each.runner.median_us)[:_WEIGHED]


def _median(values: Iterable[float | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known)) if known else None


def _trial(problem: Problem, candidate: _Candidate, clock_mhz: int | None, mode: Mode) -> Trial:
    samples = candidate.runner.samples_us
    if not samples:
        return Trial(
            problem,
            candidate.config,
            "pruned",
            median_us=candidate.screened_us,
            error=f"slower in screening: {candidate.screened_us:.2f} us",
            mode=mode,
            clock_mhz=clock_mhz,
            deviation=candidate.deviation,
        )
    estimate = median_interval(samples)
    return Trial(
        problem,
        candidate.config,
        "ok",
        median_us=estimate.median,
        low_us=estimate.low,
        high_us=estimate.high,
        samples_us=tuple(samples),
        mode=mode,
        clock_mhz=clock_mhz,
        deviation=candidate.deviation,
    )
