"""The race and its decision on timers whose truth is known."""

from __future__ import annotations

import random

import pytest

from autotune.bench.decide import decide
from autotune.bench.monitor import Reading
from autotune.bench.race import LOOKS, Rounds, Runner, race
from autotune.bench.statistics import median_interval
from autotune.values.config import Config
from autotune.values.layer import Layer, Problem
from autotune.values.record import Trial

PROBLEM = Problem(Layer(64, 64, group_size=64), 1)


class Drawn:
    """A timer whose samples are lognormal around a known time; a shared drift moves all of a round."""

    drift = 1.0

    def __init__(self, microseconds: float, seed: int, spread: float = 0.01) -> None:
        self.microseconds, self.spread, self.random = microseconds, spread, random.Random(seed)

    def lead(self) -> None:
        pass

    def start(self) -> None:
        pass

    def sample_us(self) -> float:
        return self.microseconds * Drawn.drift * self.random.lognormvariate(0, self.spread)


class Clock:
    """A monitor that gives the clocks of a list, then the last one for ever."""

    def __init__(self, *clocks: int | None) -> None:
        self.clocks = list(clocks)

    def read(self) -> Reading:
        return Reading(clock_mhz=self.clocks.pop(0) if len(self.clocks) > 1 else self.clocks[0])


def clocks(rounds):
    return [reading.clock_mhz for reading in rounds.readings]


def raced(times, seed, keep=None, **options):
    runners = [Runner(Drawn(time, seed * 100 + place, **options)) for place, time in enumerate(times)]
    race(runners, Rounds(Clock(None), seed), None if keep is None else runners[keep])
    return runners


def test_rounds_that_runners_have_behind_them_are_the_first_of_the_race():
    runners = [Runner(Drawn(10.0, seed), [10.0, 10.0, 10.0]) for seed in range(2)]
    rounds = Rounds(Clock(None))
    race(runners, rounds, is_over=lambda: True)
    assert [len(runner.samples_us) for runner in runners] == [7, 7]
    assert len(rounds.readings) == 4


def test_one_config_entered_twice_is_hardly_ever_told_apart():
    races = [raced([10.0, 10.0], seed) for seed in range(200)]
    assert sum(any(runner.left_after for runner in runners) for runners in races) <= 4


def test_three_percent_are_found():
    races = [raced([10.0, 10.3], seed) for seed in range(200)]
    assert sum(runners[1].left_after is not None for runners in races) >= 190
    assert not any(runners[0].left_after for runners in races)


def test_who_is_slower_by_far_leaves_first_and_costs_no_more_rounds():
    fast, slow = raced([10.0, 10.1, 14.0], seed=1)[::2]
    assert len(slow.samples_us) < len(fast.samples_us)
    assert slow.left_after in LOOKS


def test_who_is_kept_is_timed_to_the_end():
    fast, _, kept = raced([10.0, 10.05, 14.0], seed=1, keep=2)
    assert kept.left_after is not None
    assert len(kept.samples_us) == len(fast.samples_us)


@pytest.mark.parametrize("peer_us", [1.0, 10.0, 30.0])
def test_who_runs_beside_is_timed_in_every_round_and_decides_nothing(peer_us):
    for seed in range(20):
        alone = raced([10.0, 10.3, 14.0], seed)
        runners = [Runner(Drawn(time, seed * 100 + place)) for place, time in enumerate([10.0, 10.3, 14.0])]
        peer = Runner(Drawn(peer_us, seed))
        race(runners, Rounds(Clock(None), seed), beside=[peer])
        assert [runner.left_after for runner in runners] == [runner.left_after for runner in alone]
        assert peer.left_after is None
        assert len(peer.samples_us) == max(len(runner.samples_us) for runner in runners)


def test_a_race_ends_when_it_is_over():
    calls = iter(range(100))
    runners = [Runner(Drawn(10, 1)), Runner(Drawn(10, 2))]
    race(runners, Rounds(Clock(None)), is_over=lambda: next(calls) >= 3)
    assert len(runners[0].samples_us) == 10


def test_a_round_at_a_lowered_clock_is_repeated():
    rounds = Rounds(Clock(1980, 1500, 1980))
    runner = Runner(Drawn(10, 1))
    rounds.run([runner])
    rounds.run([runner])
    assert clocks(rounds) == [1980, 1500, 1980]


def test_a_clock_that_stays_low_does_not_hold_up_the_race():
    rounds = Rounds(Clock(1980, 1500))
    runner = Runner(Drawn(10, 1))
    rounds.run([runner])
    assert len(rounds.run([runner])) == 1
    assert clocks(rounds) == [1980, 1500, 1500, 1500]
    rounds.run([runner])  # nor does it wait for it again
    assert clocks(rounds) == [1980, 1500, 1500, 1500, 1500]


def test_a_clock_that_rose_again_and_falls_is_waited_for():
    rounds = Rounds(Clock(1980, 1500, 1500, 1500, 1700, 1500, 1700))
    runner = Runner(Drawn(10, 1))
    for _ in range(4):
        rounds.run([runner])
    assert clocks(rounds) == [1980, 1500, 1500, 1500, 1700, 1500, 1700]


def trials_of(times, rounds=25, spread=0.004):
    """Trials named by their place, the simplest first."""
    timers = [Drawn(time, seed, spread) for seed, time in enumerate(times)]
    columns = [[] for _ in times]
    for number in range(rounds):
        Drawn.drift = 1 + 0.2 * (number % 5)
        for column, timer in zip(columns, timers, strict=True):
            column.append(timer.sample_us())
    Drawn.drift = 1.0
    return [
        Trial(
            PROBLEM,
            Config.of("placed", place=place),
            "ok",
            median_interval(samples).median,
            samples_us=tuple(samples),
        )
        for place, samples in enumerate(columns)
    ]


def test_a_winner_must_beat_the_default_for_certain():
    clear, near = trials_of([10.0, 9.0]), trials_of([10.0, 9.97])
    assert decide(clear, clear[0].config).winner is clear[1]
    assert decide(near, near[0].config).winner is near[0]
    assert decide(near, near[0].config).gain.median == 1.0


def test_the_gain_is_taken_round_by_round_despite_a_common_drift():
    trials = trials_of([10.0, 8.0])
    gain = decide(trials, trials[0].config).gain
    assert gain.low <= 1.25 <= gain.high
    assert gain.high - gain.low < 0.02


def test_the_simplest_of_a_tie_wins_and_the_others_are_told():
    trials = trials_of([12.0, 9.01, 9.0, 9.005, 9.5, 11.0])
    decision = decide(trials, trials[0].config)
    assert decision.winner is trials[1]
    assert decision.ties == (trials[2], trials[3])
    assert decision.runners_up == (trials[4], trials[5])  # the default is told by the gain


@pytest.mark.parametrize("status", ["failed", "wrong", "pruned"])
def test_who_did_not_pass_does_not_win(status):
    good = trials_of([10.0])[0]
    bad = Trial(PROBLEM, Config.of("placed", place=9), status, median_us=1.0)
    assert decide([good, bad], good.config).winner is good
    assert decide([bad], bad.config) is None


def test_without_a_default_that_passed_the_fastest_wins():
    trials = trials_of([10.0, 9.0])
    assert decide(trials, Config.of("placed", place=7)).winner is trials[1]
