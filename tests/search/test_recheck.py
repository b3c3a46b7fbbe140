"""A recheck, for real on the CPU: which records are kept, replaced, dropped or left alone, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import counted
import pytest
from counted import config_of

from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.search.environment import current_environment
from autotune.search.recheck import Rechecked, recheck
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem
from autotune.values.record import Evidence, Record, Trial

DEVICE = cpu_device()
PROBLEM = Problem(Layer(n=128, k=256, group_size=64), 1)
DEFAULT, FAST, SLOW, WRONG = config_of(50), config_of(1), config_of(20), config_of(1, wrong=1)


@pytest.fixture(autouse=True)
def families(monkeypatch) -> dict[str, counted.Counted]:
    """The families of the registry; what a test changes of them the worker does not see."""
    found = counted.families()
    monkeypatch.setattr(registry, "families", lambda: found)
    return found


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    with LocalExecutor(DEVICE, entry=counted.work) as local:
        yield local


def stored(store: Store, winner: Config, *near: Config, trials: tuple[Trial, ...] = ()) -> Record:
    """Store a record of an older driver, with `near` as its runners-up."""
    evidence = Evidence(13, (1.5, 1.4, 1.6), runners_up=tuple((str(each), 9.0) for each in near))
    record = Record(
        problem=PROBLEM,
        device=DEVICE.name,
        arch=DEVICE.arch,
        config=winner,
        median_us=5.0,
        low_us=4.9,
        high_us=5.1,
        default_config=DEFAULT,
        default_us=7.5,
        source_hash=registry.family_of(winner).source_hash(),
        created_at="2025-01-01T00:00:00+00:00",
        evidence=evidence if near else None,
    )
    before = replace(current_environment(DEVICE), driver="an older one")
    store.add_result(store.begin_sweep(DEVICE, before, {}), trials, record, None)
    return record


def checked(store: Store, executor: LocalExecutor, budget_s: float | None = None) -> Rechecked:
    (result,) = recheck([PROBLEM], store, [executor], budget_s)
    return result


def measured(store: Store) -> list[Config]:
    """What has a trial of the present environment."""
    now = current_environment(DEVICE)
    return [trial.config for trial, its in store.attempts(PROBLEM, DEVICE) if its == now]


def test_a_winner_that_still_wins_is_kept_under_the_present_environment(store, executor):
    before = stored(store, FAST, SLOW)
    result = checked(store, executor)
    assert (result.verdict, result.before, result.trials, result.failed) == ("kept", before, 3, 0)
    assert "5.00 us before" in result.reason
    assert store.records(DEVICE) == [result.after]
    assert result.after.config == FAST
    assert result.after.created_at > before.created_at
    assert result.after.evidence.gain[1] > 1
    assert store.environment(DEVICE) == current_environment(DEVICE)
    assert measured(store) == [DEFAULT, FAST, SLOW]


def test_a_faster_runner_up_replaces_the_winner(store, executor):
    stored(store, SLOW, FAST)
    result = checked(store, executor)
    assert (result.verdict, result.after.config) == ("replaced", FAST)
    assert result.reason.startswith(f"{FAST} is faster than {SLOW}: ")
    assert store.records(DEVICE) == [result.after]


def test_a_winner_that_is_wrong_now_gives_way(store, executor):
    stored(store, WRONG, SLOW)
    result = checked(store, executor)
    assert (result.verdict, result.after.config, result.failed) == ("replaced", SLOW, 1)
    assert result.reason.startswith(f"{WRONG} is wrong: ")


def test_the_default_replaces_a_winner_that_does_not_beat_it(store, executor):
    stored(store, config_of(200))
    result = checked(store, executor)
    assert (result.verdict, result.after.config) == ("replaced", DEFAULT)
    assert result.reason.startswith(f"{config_of(200)} does not beat the default config: ")


def test_a_record_that_is_not_valid_any_more_is_left_alone(store, executor, families):
    families["counted"].most_calls = 100
    old = stored(store, config_of(200), SLOW)
    result = checked(store, executor)
    assert result.verdict == "unchecked"
    assert "config counted:calls=200" in result.reason
    assert result.reason.endswith("calls=200 is more than 100; sweep the problem")
    assert store.records(DEVICE) == [old]


def test_a_record_is_dropped_when_nothing_passes(store, executor, families):
    families["counted"].default_config = config_of(50, wrong=1)
    stored(store, WRONG)
    stored(store, config_of(3, wrong=1, family="other"))
    result = checked(store, executor)
    assert (result.verdict, result.after, result.failed) == ("dropped", None, 3)
    assert "no config passed: wrong" in result.reason
    assert store.records(DEVICE) == []
    assert len(store.trials(PROBLEM, DEVICE)) == 3


def test_a_beaten_record_of_another_family_goes(store, executor):
    stored(store, config_of(20, family="other"))
    stored(store, FAST)
    result = checked(store, executor)
    assert store.records(DEVICE) == [result.after]
    assert result.after.config == FAST


def test_without_evidence_the_best_trials_are_the_runners_up(store, executor):
    def trial(config: Config, median_us: float, status: str = "ok") -> Trial:
        times = (median_us, median_us, median_us, (median_us,))
        return Trial(PROBLEM, config, status, *times, source_hash=registry.family_of(config).source_hash())

    others = [trial(config_of(calls), float(calls)) for calls in range(30, 40)]
    stored(store, FAST, trials=(trial(FAST, 5.0), trial(SLOW, 1.0, "failed"), *reversed(others)))
    checked(store, executor)
    assert measured(store) == [DEFAULT, FAST, *(config_of(calls) for calls in range(30, 36))]


def test_a_problem_without_a_record_is_left_alone(store, executor):
    result = checked(store, executor)
    assert (result.verdict, result.before, result.after) == ("unchecked", None, None)
    assert result.reason == "no record; sweep the problem"


def test_a_record_of_another_source_is_left_alone(store, executor, monkeypatch):
    old = stored(store, FAST)
    monkeypatch.setattr(counted.Counted, "source_hash", lambda _: "changed")
    result = checked(store, executor)
    assert result.verdict == "unchecked"
    assert result.reason == "the record is of another kernel (source o, now changed); sweep the problem"
    assert store.records(DEVICE) == [old]


def test_a_record_whose_turn_did_not_come_is_left_alone(store, executor):
    before = stored(store, SLOW, FAST)
    result = checked(store, executor, budget_s=1e-9)
    assert (result.verdict, result.after) == ("unchecked", before)
    assert result.reason == "the time budget ended before its turn"
    assert store.records(DEVICE) == [before]
