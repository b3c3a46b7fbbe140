"""Times that cannot be believed: taken again, else reported, not stored and measured by the next sweep."""

from __future__ import annotations

from dataclasses import replace

import pytest
from store_samples import EVIDENCE, record

from autotune.bench import compare as bench_compare
from autotune.bench import noise, roofline, timer
from autotune.bench.budget import Budget
from autotune.bench.noise import why_noisy
from autotune.bench.operands import Operands
from autotune.bench.timer import timer_for
from autotune.cli.sweep import _summary
from autotune.families import registry
from autotune.search.environment import current_environment
from autotune.search.fleet import OUT_OF_TIME
from autotune.search.incremental import candidates_to_do
from autotune.search.recheck import recheck
from autotune.search.sweep import sweep
from autotune.search.tune import Tuned, tune
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.extra import TIMES_ONLY
from autotune.values.layer import Layer, Problem
from autotune.values.record import DEFAULT_MODE, Record, Trial

LAYER = Layer(n=128, k=256, group_size=64)
PROBLEMS = [Problem(LAYER, m) for m in (1, 2)]
DEVICE = cpu_device()


@pytest.fixture
def undisturbed() -> None:
    """Here what is noisy counts."""


@pytest.fixture(scope="module")
def operands() -> Operands:
    return Operands.random(LAYER, DEVICE)


def timed(median_us: float, low_us: float, high_us: float, floor_us: float = 3.0, mode="model") -> Record:
    evidence, times = replace(EVIDENCE, floor_us=floor_us), {"low_us": low_us, "high_us": high_us}
    return replace(record(), median_us=median_us, **times, mode=mode, evidence=evidence)


def test_a_wide_interval_and_an_impossible_time_are_noisy():
    assert why_noisy(timed(5.0, 4.9, 5.2)) is None
    assert "0.5 to 50.0" in why_noisy(timed(5.0, 0.5, 50.0))
    assert "35.0" in why_noisy(timed(5.0, 4.9, 5.1, floor_us=35.0))
    assert why_noisy(timed(5.0, 4.9, 5.1, floor_us=35.0, mode="hot")) is None
    assert why_noisy(timed(5.0, 4.9, 5.1, floor_us=5.4)) is None


def test_ceilings_are_measured_again_where_something_is_faster_and_only_rise(monkeypatch):
    problem = PROBLEMS[0]
    found = iter([roofline.Peaks(10.0, 1e9), roofline.Peaks(1000.0, 1e8)])
    monkeypatch.setattr(roofline, "_measured", {})
    monkeypatch.setattr(roofline, "_measure", lambda *_: next(found))
    low = problem.moved_bytes / 10.0
    assert roofline.floor_us(problem, DEVICE, low) == low
    assert roofline.floor_us(problem, DEVICE, low / 100) == pytest.approx(low / 100)
    assert roofline._measured[DEVICE, LAYER.dtype] == roofline.Peaks(1000.0, 1e9)


class Stolen:
    """A watch that says what a list says, the last for ever."""

    left: list[float]

    def stolen(self) -> float:
        return Stolen.left.pop(0) if len(Stolen.left) > 1 else Stolen.left[0]


def host_timer(operands: Operands, monkeypatch, *stolen: float):
    config = registry.default_config(PROBLEMS[0], DEVICE)
    plan = registry.family_of(config).plan(config, LAYER, DEVICE, None)
    Stolen.left = [0.0]
    monkeypatch.setattr(timer, "CpuWatch", Stolen)
    made = timer_for(plan, operands, operands.activations(1))
    Stolen.left = list(stolen)
    return made


def test_a_sample_that_others_disturbed_is_taken_again(operands, monkeypatch):
    monkeypatch.setattr(timer, "_RETRY_S", 1000.0)
    made = host_timer(operands, monkeypatch, 0.5, 0.3, 0.0, 0.7)
    made.sample_us()
    assert Stolen.left == [0.7]
    assert not made.disturbed()


def test_a_timer_that_is_never_left_alone_says_so(operands, monkeypatch):
    monkeypatch.setattr(timer, "_RETRY_S", 0.0)
    made = host_timer(operands, monkeypatch, 0.5)
    for _ in range(5):
        made.sample_us()
    assert made.disturbed()


def test_what_is_noisy_has_no_record_and_only_what_failed_is_kept(operands, monkeypatch):
    default, *others = registry.candidates(PROBLEMS[0], DEVICE)[:3]
    monkeypatch.setattr(noise, "_WIDEST", -1.0)
    tuned = tune(PROBLEMS[0], operands, [default, *others], {}, 0.0, crashed={others[0]: "it crashed"})
    assert tuned.noisy
    assert tuned.record is None
    assert "noisy" in tuned.note
    assert {(trial.config, trial.status) for trial in tuned.trials} <= {(others[0], "failed")}


def test_a_comparison_that_was_disturbed_says_so(operands, monkeypatch):
    monkeypatch.setattr(bench_compare, "is_narrow", lambda _: False)
    config = registry.default_config(PROBLEMS[0], DEVICE)

    def plan_of(config: Config):
        return registry.family_of(config).plan(config, LAYER, DEVICE, None)

    compared = bench_compare.compare(PROBLEMS[0], operands, config, config, plan_of)
    assert "matmul" in compared.noisy


class Told:
    """An executor in this process that gives these results, one after the other."""

    device, environment = DEVICE, current_environment(DEVICE)

    def __init__(self, *results) -> None:
        self.results, self.given = list(results), []

    def start(self) -> None: ...

    def cancel(self) -> None: ...

    def close(self) -> None: ...

    def tune(self, problem, candidates, cubins, budget_s=None, mode=DEFAULT_MODE, extra=TIMES_ONLY):  # noqa: ARG002
        self.given.append((problem, budget_s))
        return self.results.pop(0)(problem)


def noisy(problem: Problem) -> Tuned:  # noqa: ARG001
    return Tuned((), None, "noisy: for a test", noisy=True)


def quiet(problem: Problem, **changed) -> Tuned:
    config = registry.default_config(problem, DEVICE)
    name = registry.kernel_hash(config, problem, DEVICE)
    trials = [
        Trial(problem, each, "ok", 5.0, 4.9, 5.1, (5.0,), mode=DEFAULT_MODE, source_hash=name)
        for each in registry.candidates(problem, DEVICE)
    ]
    won = replace(
        timed(5.0, 4.9, 5.1),
        problem=problem,
        device=DEVICE.name,
        arch=DEVICE.arch,
        config=config,
        default_config=config,
        source_hash=name,
    )
    return Tuned(tuple(trials), replace(won, **changed))


def todo(store: Store) -> list[Config] | None:
    return candidates_to_do(PROBLEMS[0], DEVICE, store, Told.environment, DEFAULT_MODE)


def test_a_noisy_problem_is_reported_not_stored_and_measured_whole_by_the_next_sweep(store):
    (outcome,) = sweep(PROBLEMS[:1], store, [Told(noisy)])
    assert (outcome.noisy, outcome.record, outcome.resumed) == (True, None, False)
    assert "1 noisy" in _summary([outcome], 1.0)
    assert store.records(DEVICE) == []
    assert todo(store) == registry.candidates(PROBLEMS[0], DEVICE)
    (outcome,) = sweep(PROBLEMS[:1], store, [Told(quiet)])
    assert store.records(DEVICE) == [outcome.record]
    assert todo(store) is None


def test_a_record_stays_when_its_race_is_noisy(store):
    told = Told(
        lambda problem: quiet(problem, default_config=registry.candidates(problem, DEVICE)[1]), noisy, noisy
    )
    (first,) = sweep(PROBLEMS[:1], store, [told])
    (second,) = sweep(PROBLEMS[:1], store, [told])
    assert second.noisy
    assert store.records(DEVICE) == [first.record] == [second.record]
    (checked,) = recheck(PROBLEMS[:1], store, [told])
    assert (checked.verdict, checked.reason) == ("unchecked", "noisy: for a test")
    assert store.records(DEVICE) == [first.record]


def test_a_stored_record_that_is_noisy_is_measured_again_and_goes(store):
    told = Told(lambda problem: quiet(problem, high_us=50.0), noisy)
    list(sweep(PROBLEMS[:1], store, [told]))
    assert todo(store) == registry.candidates(PROBLEMS[0], DEVICE)
    (outcome,) = sweep(PROBLEMS[:1], store, [told])
    assert outcome.record is None
    assert store.records(DEVICE) == []


def test_what_does_not_begin_in_the_budget_is_left_to_the_next_sweep(store, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("autotune.bench.budget.time.monotonic", lambda: now[0])

    def slow(problem: Problem) -> Tuned:
        now[0] += 11.0
        return quiet(problem)

    told = Told(slow, slow)
    first, second = sweep(PROBLEMS, store, [told], budget_s=10.0)
    assert first.record is not None
    assert (second.record, second.note) == (None, OUT_OF_TIME)
    assert [problem for problem, _ in told.given] == [first.problem]
    again = {each.problem: each for each in sweep(PROBLEMS, store, [told], budget_s=10.0)}
    assert again[first.problem].resumed
    assert again[second.problem].record is not None


def test_what_an_executor_waits_for_is_not_counted(store, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("autotune.bench.budget.time.monotonic", lambda: now[0])

    def waiting(problem: Problem) -> Tuned:
        now[0] += 1001.0
        return replace(quiet(problem), waited_s=1000.0)

    told = Told(waiting, waiting)
    outcomes = list(sweep(PROBLEMS, store, [told], budget_s=10.0))
    assert all(outcome.record for outcome in outcomes)
    assert [budget_s for _, budget_s in told.given] == [5.0, 9.0]


def test_a_part_of_a_budget_extends_the_whole(monkeypatch):
    monkeypatch.setattr("autotune.bench.budget.time.monotonic", lambda: 100.0)
    whole = Budget(10.0)
    part = whole.part(0.5)
    part.extend(7.0)
    assert (part.left_s, whole.left_s) == (12.0, 17.0)
    assert Budget(None).part(0.5).left_s is None
    assert Budget(0.0).spent()
