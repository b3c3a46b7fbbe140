"""A sweep on the CPU, for real: what is measured, chosen, stored and skipped."""

from __future__ import annotations

import pytest
from undisturbed import work

from autotune.bench import measure as bench_measure
from autotune.bench import race
from autotune.bench.measure import measure
from autotune.bench.monitor import Reading
from autotune.bench.operands import Operands
from autotune.bench.timer import timer_for
from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.jit import compiler
from autotune.search.sweep import sweep
from autotune.search.tune import compile_candidates, tune
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.errors import LaunchError
from autotune.values.layer import Layer, Problem

LAYER = Layer(n=128, k=256, group_size=64)
PROBLEMS = [Problem(LAYER, m) for m in (1, 4)]


def plan_of(config):
    return registry.family_of(config).plan(config, LAYER, cpu_device(), None)


@pytest.fixture(scope="module")
def operands():
    return Operands.random(LAYER, cpu_device())


@pytest.fixture(scope="module")
def executor():
    with LocalExecutor(cpu_device(), entry=work) as local:
        yield local


def test_every_candidate_leaves_a_trial_and_the_winner_a_record(store, executor):
    outcomes = list(sweep(PROBLEMS, store, [executor]))
    assert [outcome.problem for outcome in outcomes] == PROBLEMS
    for outcome in outcomes:
        record, space = outcome.record, registry.space(outcome.problem, cpu_device())
        trials = {trial.config: trial for trial in store.trials(outcome.problem, cpu_device())}
        assert set(trials) == {*space, registry.default_config(outcome.problem, cpu_device())}
        assert outcome.failed == 0
        assert record is not None
        assert record in store.records(cpu_device())
        assert trials[record.config].median_us == pytest.approx(record.median_us)
        assert record.low_us <= record.median_us <= record.high_us
        assert record.evidence is not None
        assert record.evidence.gain[1] > 1 or record.config == record.default_config


def test_what_is_stored_is_not_measured_again(store, executor):
    first = list(sweep(PROBLEMS[:1], store, [executor]))
    again = list(sweep(PROBLEMS, store, [executor]))
    assert [outcome.resumed for outcome in again] == [True, False]
    assert again[0].record == first[0].record


def test_an_abandoned_sweep_keeps_what_it_yielded(store, executor):
    running = sweep(PROBLEMS, store, [executor])
    next(running)
    running.close()
    assert [record.problem for record in store.records(cpu_device())] == PROBLEMS[:1]


def test_a_config_that_fails_or_is_wrong_does_not_end_the_measuring(operands):
    problem = PROBLEMS[0]
    good, failing, wrong = registry.space(problem, cpu_device())[:3]

    class Wrong:
        def workspace_bytes(self, m):  # noqa: ARG002
            return 0

        def run(self, x, weight, bias, out, workspace):  # noqa: ARG002
            out.zero_()

    def make(config: Config):
        if config == failing:
            raise LaunchError("it does not launch")
        return Wrong() if config == wrong else plan_of(config)

    trials = {
        trial.config: trial for trial in measure(problem, operands, [failing, wrong], good, make).trials
    }
    assert (trials[failing].status, trials[failing].error) == ("failed", "it does not launch")
    assert trials[wrong].status == "wrong"
    assert "expected" in trials[wrong].error
    assert trials[good].status == "ok"


@pytest.mark.parametrize(
    ("m", "verified"), [(1, [1]), (2, [2]), (24, [17, 24]), (32, [17, 32]), (3072, [2049, 3072])]
)
def test_a_config_is_verified_at_both_ends_of_what_its_record_may_serve(operands, m, verified, monkeypatch):
    seen, verified_with = [], []

    class Noting:
        def __init__(self, plan):
            self._plan = plan
            self.workspace_bytes = plan.workspace_bytes

        def run(self, x, *others):
            seen.append(len(x))
            self._plan.run(x, *others)

    def timing(*arguments):
        verified_with.extend(seen)
        return timer_for(*arguments)

    monkeypatch.setattr(bench_measure, "timer_for", timing)
    problem = Problem(LAYER, m)
    default = registry.default_config(problem, cpu_device())
    measure(problem, operands, [], default, lambda config: Noting(plan_of(config)), budget_s=1e-9)
    expected = []
    for tokens in verified:
        # All magnitudes, which takes several runs of one or two tokens; the hard weight; the first run again.
        expected += [tokens] * len(range(0, 3, tokens)) + [max(1, min(16, tokens // 2)), tokens]
    assert verified_with == expected


def test_a_record_says_how_the_device_was(operands, monkeypatch):
    class Rising:
        """A device that gets hotter by a degree each round, and tells its power every other time."""

        rounds = 0

        def read(self):
            self.rounds += 1
            power = 300.0 if self.rounds % 2 else None
            return Reading(clock_mhz=1980, temperature_c=40 + self.rounds, power_w=power)

    device = Rising()
    monkeypatch.setattr(bench_measure, "monitor_for", lambda _: device)
    problem = PROBLEMS[0]
    default, *others = registry.space(problem, cpu_device())[:2]
    tuned = tune(problem, operands, [default, *others], {})
    evidence = tuned.record.evidence
    assert (evidence.clock_mhz, evidence.power_w) == (1980, 300)
    assert evidence.temperature_c == round(40 + (1 + device.rounds) / 2)
    assert evidence.rounds == device.rounds  # screening is the first of the race


def test_without_time_only_the_default_is_measured(operands):
    problem = PROBLEMS[0]
    default, *others = registry.space(problem, cpu_device())[:4]
    measured = measure(problem, operands, others, default, plan_of, budget_s=0.0)
    trials = {trial.config: trial for trial in measured.trials}
    assert trials[default].status == "ok"
    assert len(trials[default].samples_us) == race._FEWEST_ROUNDS
    assert {trials[config].status for config in others} == {"pruned"}


def test_a_cpu_needs_no_compiler(monkeypatch):
    monkeypatch.setattr(compiler, "compiler_version", lambda: pytest.fail("asked for the compiler"))
    chosen = {problem: registry.candidates(problem, cpu_device()) for problem in PROBLEMS}
    assert compile_candidates(chosen, cpu_device()) == {problem: {} for problem in PROBLEMS}


def test_with_a_budget_the_most_promising_are_measured_first_and_trials_keep_their_order():
    """A CPU has no fit, so estimates say what is promising: with two threads it is what uses both."""
    problem, device = Problem(Layer(n=512, k=1024, group_size=64), 4), cpu_device()
    candidates, taken = registry.candidates(problem, device), []
    assert len(candidates) > 2
    operands = Operands.random(problem.layer, device)
    tuned = tune(problem, operands, candidates, {}, budget_s=60.0, notice=taken.append)

    def estimated(config):
        return registry.family_of(config).estimate(config, problem, device)

    measured = list(dict.fromkeys(filter(None, taken)))
    assert measured == [*candidates[:2], *sorted(candidates[2:], key=estimated)]
    assert [trial.config for trial in tuned.trials] == candidates
