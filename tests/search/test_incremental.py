"""What is still to do: only what the store lacks, against the incumbent and the default."""

from __future__ import annotations

from dataclasses import replace

import pytest
from store_samples import A100, ENVIRONMENT, EVIDENCE, FAMILY, H200, LAYER, RIVAL, SOURCES, config, record
from undisturbed import work

from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.search.environment import current_environment
from autotune.search.incremental import candidates_to_do, current_records, outlasts
from autotune.search.sweep import sweep
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.extra import Extra
from autotune.values.layer import Layer, Problem
from autotune.values.record import DEFAULT_MODE, Mode, Record, Trial

PROBLEM = Problem(LAYER, 1)
DEFAULT, SECOND, THIRD = (config(tile_m=tile_m) for tile_m in (64, 8, 16))
FOREIGN = [config(family=RIVAL, tile_m=tile_m) for tile_m in (1, 2)]


class SmallFamily:
    """A family as the search sees it: a list of configs, the first of which is the default."""

    kind = "cuda"

    def __init__(self, name: str, configs: list[Config]) -> None:
        self.name, self.configs, self.hash = name, configs, SOURCES[name]

    def source_hash(self) -> str:
        return self.hash

    def reject(self, config, problem, device) -> str | None:  # noqa: ARG002
        return None if config in self.configs else "it is not in the list"

    def space(self, problem, device) -> list[Config]:  # noqa: ARG002
        return self.configs

    def unit(self, config, layer, device) -> None:  # noqa: ARG002
        return None

    def default(self, problem, device) -> Config | None:  # noqa: ARG002
        return self.configs[0]

    def estimate(self, config, problem, device) -> float:  # noqa: ARG002
        return 1.0


@pytest.fixture
def families(monkeypatch) -> dict[str, SmallFamily]:
    """The families of the registry, which a test may change; so far one of two configs."""
    small = {FAMILY: SmallFamily(FAMILY, [DEFAULT, SECOND])}
    monkeypatch.setattr(registry, "families", lambda: small)
    return small


def timed(which: Config, median_us: float, status: str = "ok") -> Trial:
    times = (median_us, median_us, median_us, (median_us,))
    return Trial(PROBLEM, which, status, *times, source_hash=SOURCES[which.family])


def in_mode(mode: Mode, *trials: Trial) -> list[Trial]:
    return [replace(trial, mode=mode) for trial in trials]


def add(store, trials, winner: Record | None = None, environment=ENVIRONMENT, device=H200) -> None:
    store.add_result(store.begin_sweep(device, environment, {}), trials, winner, None)


def measured(store, environment=ENVIRONMENT) -> None:
    """Both configs of `tiled` have a trial, and the second is the winner."""
    add(store, [timed(DEFAULT, 7.0), timed(SECOND, 5.0)], record(best=SECOND), environment)


def todo(store, environment=ENVIRONMENT, mode: Mode = "graph") -> list[Config] | None:
    return candidates_to_do(PROBLEM, H200, store, environment, mode)


@pytest.mark.usefixtures("families")
def test_a_record_without_a_peer_is_raced_again_where_one_is_wanted(store):
    measured(store)
    assert todo(store) is None
    assert candidates_to_do(PROBLEM, H200, store, ENVIRONMENT, "graph", Extra(peer=True)) == [DEFAULT, SECOND]
    add(store, [timed(SECOND, 5.0)], replace(record(best=SECOND, at=1), evidence=EVIDENCE))
    assert candidates_to_do(PROBLEM, H200, store, ENVIRONMENT, "graph", Extra(peer=True)) is None


@pytest.mark.usefixtures("families")
def test_without_a_record_all_is_to_do(store):
    assert todo(store) == [DEFAULT, SECOND]
    add(store, [timed(SECOND, 5.0)], record(best=SECOND, device=A100), device=A100)
    assert todo(store) == [DEFAULT, SECOND]


@pytest.mark.usefixtures("families")
def test_what_has_a_record_and_all_trials_is_done(store):
    measured(store)
    assert todo(store) is None
    assert todo(store, replace(ENVIRONMENT, torch="3.0", version="9.9")) is None


def test_a_new_config_races_against_the_incumbent_and_the_default(store, families):
    families[FAMILY].configs = [DEFAULT, config(tile_m=1), SECOND, config(tile_m=2)]
    add(store, [timed(DEFAULT, 7.0), timed(config(tile_m=1), 6.0), timed(SECOND, 5.0)], record(best=SECOND))
    assert todo(store) == [DEFAULT, SECOND, config(tile_m=2)]
    failed = Trial(PROBLEM, config(tile_m=2), "failed", error="it did not compile")
    add(store, [replace(failed, source_hash=SOURCES[FAMILY])])
    assert todo(store) is None


def test_a_new_family_is_all_to_do(store, families):
    measured(store)
    families[RIVAL] = SmallFamily(RIVAL, FOREIGN)
    assert todo(store) == [DEFAULT, SECOND, *FOREIGN]


def test_a_changed_source_undoes_its_family_only(store, families):
    families[RIVAL] = SmallFamily(RIVAL, FOREIGN)
    everything = [timed(DEFAULT, 7.0), timed(SECOND, 5.0), timed(FOREIGN[0], 6.5), timed(FOREIGN[1], 6.0)]
    add(store, everything, record(best=SECOND))
    assert todo(store) is None
    families[RIVAL].hash = "changed"
    assert todo(store) == [DEFAULT, SECOND, *FOREIGN]
    families[RIVAL].hash, families[FAMILY].hash = SOURCES[RIVAL], "changed"
    assert todo(store) == [DEFAULT, FOREIGN[1], SECOND]


@pytest.mark.usefixtures("families")
def test_trials_of_no_known_kernel_are_to_do_again(store):
    add(store, [timed(DEFAULT, 7.0), replace(timed(SECOND, 5.0), source_hash=None)], record(best=DEFAULT))
    assert todo(store) == [DEFAULT, SECOND]


def test_a_new_default_is_timed_against_the_incumbent(store, families):
    measured(store)
    families[FAMILY].configs = [SECOND, DEFAULT]
    assert todo(store) == [SECOND]
    families[FAMILY].configs = [THIRD, DEFAULT, SECOND]
    assert todo(store) == [THIRD, SECOND]


def test_another_driver_makes_nothing_new(store, families):
    measured(store, replace(ENVIRONMENT, driver="CUDA 12.4"))
    assert todo(store) is None
    families[FAMILY].configs = [DEFAULT, THIRD, SECOND]
    assert todo(store) == [DEFAULT, SECOND, THIRD]


@pytest.mark.usefixtures("families")
def test_modes_are_never_compared(store):
    measured(store)
    assert todo(store, mode="server") == [DEFAULT, SECOND]
    served = in_mode("server", timed(DEFAULT, 9.0), timed(SECOND, 11.0))
    winner = replace(record(best=DEFAULT), mode="server", evidence=EVIDENCE)
    add(store, served, winner)
    assert todo(store, mode="server") is None
    assert todo(store) is None
    assert todo(store, mode="hot") == [DEFAULT, SECOND]


@pytest.mark.usefixtures("families")
def test_a_sweep_in_another_mode_leaves_what_models_run(store):
    measured(store)
    in_use = current_records(PROBLEM, H200, store, ENVIRONMENT)
    hot = replace(record(best=DEFAULT, at=9), mode="hot", evidence=EVIDENCE)
    add(store, in_mode("hot", timed(DEFAULT, 1.0)), hot)
    assert current_records(PROBLEM, H200, store, ENVIRONMENT) == in_use
    best = replace(hot, mode="model")
    add(store, in_mode("model", timed(DEFAULT, 9.0)), best)
    assert current_records(PROBLEM, H200, store, ENVIRONMENT) == [best]


def test_an_incumbent_that_is_not_valid_any_more_gives_way_to_the_next(store, families):
    families[FAMILY].configs = [DEFAULT, SECOND, THIRD]
    add(store, [timed(DEFAULT, 7.0), timed(SECOND, 5.0), timed(THIRD, 6.0)], record(best=SECOND))
    families[FAMILY].configs = [DEFAULT, THIRD, config(tile_m=32)]
    assert todo(store) == [DEFAULT, THIRD, config(tile_m=32)]


@pytest.mark.usefixtures("families")
def test_where_nothing_passed_all_is_to_do_again(store):
    add(store, [timed(DEFAULT, 7.0, "wrong"), timed(SECOND, 5.0, "failed")])
    assert todo(store) == [DEFAULT, SECOND]


def test_a_record_outlasts_a_race_that_it_was_not_in():
    mine, both = record(best=SECOND), [DEFAULT, SECOND]
    unreached = Trial(PROBLEM, SECOND, "pruned", error="the time budget ended before its turn")
    assert outlasts(mine, both, [timed(DEFAULT, 7.0), unreached])
    assert outlasts(mine, both, [])
    assert not outlasts(mine, both, [timed(DEFAULT, 5.0), timed(SECOND, 7.0, "pruned")])
    assert not outlasts(mine, both, [timed(DEFAULT, 5.0), Trial(PROBLEM, SECOND, "failed")])
    assert not outlasts(mine, [DEFAULT], [timed(DEFAULT, 5.0)])
    assert not outlasts(None, both, [timed(DEFAULT, 5.0)])


def test_a_sweep_measures_what_is_missing_and_no_more(store):
    """For real: a database that lacks one trial of each problem of a finished sweep."""
    device = cpu_device()
    problems = [Problem(Layer(n=128, k=256, group_size=64), m) for m in (1, 2)]
    with LocalExecutor(device, entry=work) as executor:
        first = {each.problem: each for each in sweep(problems, store, [executor])}
        with Store.open(f"{store.name}.copy") as other:
            environment = current_environment(device)
            again = other.begin_sweep(device, environment, {})
            missing = {}
            for problem in problems:
                winner = first[problem].record
                spare = {winner.config, winner.default_config}
                trials = store.trials(problem, device)
                missing[problem] = [each.config for each in trials if each.config not in spare][:1]
                left = [each for each in trials if each.config not in missing[problem]]
                other.add_result(again, left, winner, None)
            second = list(sweep(problems, other, [executor]))
            for outcome in second:
                winner = first[outcome.problem].record
                timed_now = other.trials(outcome.problem, device)[-outcome.trials :]
                expected = {winner.config, winner.default_config, *missing[outcome.problem]}
                assert {trial.config for trial in timed_now} == expected
                assert outcome.trials == len(expected) < len(registry.candidates(outcome.problem, device))
                assert not outcome.resumed
                assert outcome.record in other.records(device)
            assert [each.resumed for each in sweep(problems, other, [executor])] == [True, True]


def test_a_budget_that_is_spent_leaves_the_stored_winner(store):
    device, problem = cpu_device(), Problem(Layer(n=128, k=256, group_size=64), 1)
    default, best, *_ = registry.candidates(problem, device)
    stored = replace(
        record(),
        mode=DEFAULT_MODE,
        evidence=EVIDENCE,
        problem=problem,
        device=device.name,
        arch=device.arch,
        config=best,
        default_config=default,
        source_hash=registry.family_of(best).source_hash(),
    )
    add(store, [], stored, current_environment(device), device)
    with LocalExecutor(device, entry=work) as executor:
        (outcome,) = sweep([problem], store, [executor], budget_s=1e-9)
    assert outcome.record == stored
    assert store.records(device) == [stored]
