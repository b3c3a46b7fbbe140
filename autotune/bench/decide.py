"""Decides, from the samples of a race, which config a problem's record gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.bench.race import MARGIN, is_slower
from autotune.bench.statistics import Estimate, ratio_interval
from autotune.values.config import Config
from autotune.values.record import Trial

_RUNNERS_UP = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """The winner's trial, the default's time over the winner's, and who came near besides the default."""

    winner: Trial
    gain: Estimate
    ties: tuple[Trial, ...]
    runners_up: tuple[Trial, ...]


def decide(trials: Sequence[Trial], default: Config) -> Verdict | None:
    """The decision over trials of one race, given simplest config first; None when none passed.

    Configs that the race could not tell from the fastest, and whose median is within the margin of it, tie:
    the simplest of them wins. The winner must be faster than the default config by more than the margin, for
    certain; else the default wins.
    """
    passed = [trial for trial in trials if trial.status == "ok"]
    if not passed:
        return None
    # Medians compare only between those who ran the same rounds, because the clock may have moved.
    most = max(len(trial.samples_us) for trial in passed)
    fastest = min((trial for trial in passed if len(trial.samples_us) == most), key=_median_us)
    tied = [trial for trial in passed if _ties(trial, fastest)]
    baseline = next((trial for trial in passed if trial.config == default), None)
    winner = tied[0]
    if baseline is not None and not is_slower(baseline.samples_us, winner.samples_us):
        winner = baseline
    others = [trial for trial in passed if trial not in (*tied, winner, baseline)]
    others.sort(key=lambda trial: _ratio(trial, winner).median)
    return Verdict(
        winner=winner,
        gain=_ratio(baseline or winner, winner),
        ties=tuple(trial for trial in tied if trial is not winner),
        runners_up=tuple(others[:_RUNNERS_UP]),
    )


def _ties(trial: Trial, fastest: Trial) -> bool:
    near = _ratio(trial, fastest).median <= 1 + MARGIN
    return near and not is_slower(trial.samples_us, fastest.samples_us)


def _ratio(above: Trial, below: Trial) -> Estimate:
    common = min(len(above.samples_us), len(below.samples_us))
    return ratio_interval(above.samples_us[:common], below.samples_us[:common])


def _median_us(trial: Trial) -> float:
    return float("inf") if trial.median_us is None else trial.median_us
