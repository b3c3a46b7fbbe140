"""What a sweep leaves out by prediction: stored as such, never raced again, and only where a fit holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fitted import PROBLEM, estimate_us, fit_of
from store_samples import ENVIRONMENT, EVIDENCE, H200, record
from undisturbed import work

from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.prediction.files import own_fit
from autotune.prediction.fit import Fit, write
from autotune.prediction.predictor import Predictor
from autotune.prediction.pruning import far
from autotune.search.fleet import Task
from autotune.search.sweep import sweep
from autotune.search.todo import task_to_do
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem
from autotune.values.record import DEFAULT_MODE, Mode, Record, Trial

WHOLE = registry.candidates(PROBLEM, H200)
HERE = replace(ENVIRONMENT, sources={each.name: each.source_hash() for each in registry.families_of(H200)})
FIT = fit_of(dict.fromkeys({config.family for config in WHOLE}, 1.0), ())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(str(tmp_path / "mine.db")) as opened:
        yield opened


def todo(store: Store, fit: Fit | None = FIT, mode: Mode = DEFAULT_MODE) -> Task | None:
    return task_to_do(PROBLEM, H200, store, HERE, mode, Predictor(fit, H200))


def won(config: Config) -> Record:
    kernel = registry.kernel_hash(config, PROBLEM, H200)
    made = replace(record(), problem=PROBLEM, config=config, mode=DEFAULT_MODE, evidence=EVIDENCE)
    return replace(made, default_config=WHOLE[0], source_hash=kernel)


def trial_of(config: Config) -> Trial:
    times = (9.0, 9.0, 9.0, (9.0,))
    kernel = registry.kernel_hash(config, PROBLEM, H200)
    return Trial(PROBLEM, config, "ok", *times, mode=DEFAULT_MODE, source_hash=kernel)


def add(store: Store, trials: list[Trial], winner: Config) -> None:
    store.add_result(store.begin_sweep(H200, HERE, {}), trials, won(winner), None)


def test_what_is_predicted_to_be_slow_is_left_out_with_the_reason(store: Store) -> None:
    task = todo(store)
    assert task is not None
    slow = far(Predictor(FIT, H200), PROBLEM, WHOLE)
    assert {trial.config: trial.error for trial in task.pruned} == {
        config: slow[config] for config in WHOLE[2:] if config in slow
    }
    assert {(trial.status, trial.median_us, trial.mode) for trial in task.pruned} == {
        ("pruned", None, DEFAULT_MODE)
    }
    assert list(task.candidates) == [c for c in WHOLE if c not in {trial.config for trial in task.pruned}]
    assert len(task.candidates) <= len(WHOLE) / 2


def test_nothing_is_left_out_in_another_mode_or_where_the_fit_is_of_other_kernels(store: Store) -> None:
    families = {
        name: replace(family, probes=tuple(replace(probe, kernel="other") for probe in family.probes))
        for name, family in FIT.families.items()
    }
    for task in (todo(store, mode="graph"), todo(store, None), todo(store, replace(FIT, families=families))):
        assert task is not None
        assert (list(task.candidates), list(task.pruned)) == (WHOLE, [])


def test_what_was_swept_whole_or_left_out_is_done(store: Store) -> None:
    task = todo(store)
    assert task is not None
    add(store, [*map(trial_of, task.candidates), *task.pruned], task.candidates[1])
    assert todo(store) is None
    assert todo(store, None) is None
    with Store.open(f"{store.name}.whole") as other:
        add(other, list(map(trial_of, WHOLE)), WHOLE[-1])
        assert todo(other) is None


def test_the_default_and_the_incumbent_are_always_raced(store: Store) -> None:
    slowest = max(WHOLE[1:], key=estimate_us)
    assert slowest in far(Predictor(FIT, H200), PROBLEM, WHOLE)
    add(store, [trial_of(slowest)], slowest)
    task = todo(store)
    assert task is not None
    assert list(task.candidates[:2]) == [WHOLE[0], slowest]
    assert slowest not in {trial.config for trial in task.pruned}


def test_a_sweep_stores_what_it_leaves_out_and_has_nothing_left_to_do(store: Store) -> None:
    device, problem = cpu_device(), Problem(Layer(n=256, k=512, group_size=64), 16)
    assert store.database.path is not None
    whole = set(registry.candidates(problem, device))
    own = fit_of({config.family: 1.0 for config in whole}, (), problem=problem, device=device)
    write(own, own_fit(store.database.path, device.name))
    with LocalExecutor(device, entry=work, allow_busy=True) as executor:
        (first,) = sweep([problem], store, [executor])
        trials = store.trials(problem, device)
        (again,) = sweep([problem], store, [executor])
    assert (first.trials + first.pruned, {trial.config for trial in trials}) == (len(whole), whole)
    untimed = [trial for trial in trials if trial.median_us is None]
    assert len(untimed) == first.pruned > 0
    assert all((trial.error or "").startswith("not timed: ") for trial in untimed)
    assert first.record is not None
    assert first.record.evidence is not None
    assert first.record.evidence.candidates == first.trials
    assert (again.resumed, again.record) == (True, first.record)
