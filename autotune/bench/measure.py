"""Measures the candidates of one problem: each verified first, then timed round by round, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from autotune.bench.operands import Operands
from autotune.bench.statistics import median_interval
from autotune.bench.timer import Timer, time_round, timer_for
from autotune.bench.verify import Verifier
from autotune.config import Config
from autotune.errors import AutotuneError
from autotune.kernels.family import Plan
from autotune.layer import BUCKETS, Problem
from autotune.record import Trial

_SCREEN_ROUNDS = 3
_ROUNDS = 25
_FEWEST_ROUNDS = 7
_FINALISTS = 8
_SCREEN_SHARE = 0.6


@dataclass(slots=True)
class _Candidate:
    config: Config
    timer: Timer
    screened: float = float("inf")
    samples: list[float] = field(default_factory=list)


class Budget:
    """Seconds that a piece of work may take; None is no limit."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def spent(self) -> bool:
        """Whether the time is up."""
        return self._end is not None and time.monotonic() >= self._end


def measure(
    problem: Problem,
    operands: Operands,
    candidates: Sequence[Config],
    default: Config,
    plan_of: Callable[[Config], Plan],
    budget_s: float | None = None,
) -> list[Trial]:
    """One trial per candidate.

    All candidates that verify are screened in a few rounds; the fastest and `default` then go through the
    full number of rounds. Within `budget_s` the candidates are taken in their order, `default` first; those
    whose turn never comes are `pruned`.
    """
    verifiers = [Verifier(operands, m, seed) for seed, m in enumerate(_verified_ms(problem.m), start=1)]
    x = operands.tokens(problem.m, seed=0)
    out = torch.empty((problem.m, problem.layer.n), dtype=x.dtype, device=x.device)
    trials: list[Trial] = []
    passed: list[_Candidate] = []
    screening = Budget(None if budget_s is None else budget_s * _SCREEN_SHARE)
    whole = Budget(budget_s)
    for config in (default, *(config for config in candidates if config != default)):
        if passed and screening.spent():
            trials.append(Trial(problem, config, "pruned", error="the time budget ended before its turn"))
            continue
        try:
            plan = plan_of(config)
            wrong = next((error for verifier in verifiers if (error := verifier.error(plan))), None)
            if wrong is not None:
                trials.append(Trial(problem, config, "wrong", error=wrong))
                continue
            passed.append(_Candidate(config, timer_for(plan, operands, x, out)))
        except (AutotuneError, RuntimeError) as error:
            trials.append(Trial(problem, config, "failed", error=str(error).partition("\n")[0]))
    return trials + _race(problem, passed, default, whole)


def _verified_ms(m: int) -> tuple[int, ...]:
    """The first and last number of tokens that the bucket of m serves."""
    below = max((bucket for bucket in BUCKETS if bucket < m), default=0)
    return (m,) if below + 1 == m else (below + 1, m)


def _race(problem: Problem, passed: list[_Candidate], default: Config, budget: Budget) -> list[Trial]:
    for number in range(_SCREEN_ROUNDS):
        if number and budget.spent():
            break
        for candidate, sample in zip(passed, time_round([each.timer for each in passed]), strict=True):
            candidate.screened = min(candidate.screened, sample)
    ranked = sorted(passed, key=lambda candidate: candidate.screened)
    finalists = [each for place, each in enumerate(ranked) if place < _FINALISTS or each.config == default]
    for number in range(_ROUNDS):
        if number >= _FEWEST_ROUNDS and budget.spent():
            break
        for candidate, sample in zip(finalists, time_round([each.timer for each in finalists]), strict=True):
            candidate.samples.append(sample)
    return [_trial(problem, candidate) for candidate in ranked]


def _trial(problem: Problem, candidate: _Candidate) -> Trial:
    if not candidate.samples:
        reason = f"slower in screening: {candidate.screened:.2f} us"
        return Trial(problem, candidate.config, "pruned", median_us=candidate.screened, error=reason)
    estimate = median_interval(candidate.samples)
    return Trial(
        problem,
        candidate.config,
        "ok",
        median_us=estimate.median,
        low_us=estimate.low,
        high_us=estimate.high,
        samples_us=tuple(candidate.samples),
    )
