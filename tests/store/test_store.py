"""The store's methods, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from databases import rows
from store_samples import (
    A100,
    ENVIRONMENT,
    H100,
    H200,
    LAYER,
    binary,
    config,
    evident_trials,
    record,
    trials,
    with_evidence,
)

from autotune.store.store import Store
from autotune.values.layer import Layer, Problem
from autotune.values.record import Trial


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def add(store: Store, *records, device=H200, environment=ENVIRONMENT, cubin=None) -> int:
    sweep = store.begin_sweep(device, environment, {})
    for each in records:
        store.add_result(sweep, trials(each), each, cubin)
    return sweep


def test_a_result_comes_back_whole(store):
    stored = record()
    add(store, stored, cubin=binary())
    assert store.records() == [stored]
    assert store.trials(stored.problem, H200) == trials(stored)
    assert store.devices() == [H200]
    assert store.environment(H200) == ENVIRONMENT


def test_evidence_comes_back_whole(store):
    stored = with_evidence(record())
    sweep = store.begin_sweep(H200, ENVIRONMENT, {})
    store.add_result(sweep, evident_trials(stored), stored, None)
    assert store.records() == [stored]
    assert store.trials(stored.problem, H200) == evident_trials(stored)
    store.add_result(sweep, [], replace(stored, evidence=None), None)
    assert store.records() == [replace(stored, evidence=None)]


def test_attempts_are_trials_with_their_environment(store):
    later = replace(ENVIRONMENT, driver="CUDA 13.1")
    add(store, record(m=1), record(m=2))
    add(store, record(m=1), environment=later)
    add(store, record(m=1, device=H100), device=H100)
    expected = [(each, when) for when in (ENVIRONMENT, later) for each in trials(record(m=1))]
    assert store.attempts(record(m=1).problem, H200) == expected
    assert store.attempts(record(m=4).problem, H200) == []


def test_records_of_one_problem(store):
    mine = [record(m=1), replace(record(m=1, at=1), source_hash="another source")]
    add(store, *mine, record(m=2), record(layer=Layer(1024, 4096)))
    add(store, record(device=H100), device=H100)
    assert store.records(H200, record(m=1).problem) == mine
    assert store.records(H200, record(m=4).problem) == []


def test_a_dropped_record_goes_and_its_trials_stay(store):
    gone, kept = record(m=1), [replace(record(m=1), source_hash="another source"), record(m=2)]
    add(store, gone, *kept)
    add(store, record(device=H100), device=H100)
    again = store.begin_sweep(H200, ENVIRONMENT, {})
    store.add_result(again, trials(gone)[:1], None, None, [gone])
    assert store.records(H200) == kept
    assert store.records(H100) == [record(device=H100)]
    assert len(store.trials(gone.problem, H200)) == 2 * 3 + 1


def test_a_database_is_found_again_after_closing(url):
    with Store.open(url) as first:
        add(first, record())
    with Store.open(url) as second:
        assert second.records() == [record()]


def test_a_sweep_keeps_its_arguments_status_and_times(store, url):
    sweep = store.begin_sweep(H200, ENVIRONMENT, {"shapes": "llama7b", "m": [1, 16]})
    other = store.begin_sweep(H200, ENVIRONMENT, {})
    (before, _) = rows(url, "sweep")
    assert (before["status"], before["finished_at"]) == ("running", None)
    store.finish_sweep(sweep, "finished")
    (after, untouched) = rows(url, "sweep")
    assert after["status"] == "finished"
    assert after["finished_at"] >= after["started_at"]
    assert (untouched["id"], untouched["status"]) == (other, "running")
    assert "llama7b" in str(after["arguments"])


def test_a_newer_record_replaces_the_older_and_its_trials_stay(store, url):
    old, new = record(best=config(8), at=1), replace(record(best=config(16), at=2), median_us=4.0)
    add(store, old)
    add(store, new)
    assert store.records() == [new]
    assert store.trials(new.problem, H200) == trials(old) + trials(new)
    (row,) = rows(url, "record")
    (evidence,) = [each for each in rows(url, "trial") if each["id"] == row["trial_id"]]
    assert (evidence["config"], evidence["sweep_id"]) == (str(new.config), 2)


def test_records_of_other_problems_devices_and_sources_stay(store):
    kept = [
        record(m=1),
        record(m=2),
        record(layer=Layer(4096, 4096, zero_point=False)),
        record(layer=Layer(4096, 4096, dtype="bf16")),
        replace(record(), source_hash="another source"),
    ]
    add(store, *kept)
    add(store, record(device=H100), device=H100)
    assert len(store.records()) == 6
    assert len(store.records(H200)) == 5
    assert set(store.records(H200)) == set(kept)
    assert store.records(H100) == [record(device=H100)]
    assert store.records(A100) == []
    assert store.trials(record().problem, A100) == []


def test_records_are_sorted_by_device_and_problem(store):
    add(store, record(m=16), record(m=2), record(layer=Layer(1024, 4096)))
    add(store, record(device=A100), device=A100)
    assert [(each.device, each.problem) for each in store.records()] == [
        ("NVIDIA A100", Problem(LAYER, 1)),
        ("NVIDIA H200", Problem(Layer(1024, 4096), 1)),
        ("NVIDIA H200", Problem(LAYER, 2)),
        ("NVIDIA H200", Problem(LAYER, 16)),
    ]


def test_a_problem_without_a_winner_stores_its_trials_only(store):
    failed = Trial(Problem(LAYER, 1), config(), "wrong", error="differs at [0, 3]")
    store.add_result(store.begin_sweep(H200, ENVIRONMENT, {}), [failed], None, None)
    assert store.records() == []
    assert store.trials(failed.problem, H200) == [failed]
    assert store.environment(H200) is None


def test_a_binary_is_stored_once_for_its_unit(store, url):
    add(store, record(m=1), record(m=2), cubin=binary())
    (row,) = rows(url, "binary")
    assert bytes(row["cubin"]) == binary().cubin
    assert {each["binary_id"] for each in rows(url, "record")} == {row["id"]}
    add(store, record(m=4), cubin=binary(cubin=b"from another compiler"))
    (row,) = rows(url, "binary")
    assert bytes(row["cubin"]) == b"from another compiler"
    assert row["sha256"] == binary(cubin=b"from another compiler").sha256


def test_device_and_environment_are_stored_once(store, url):
    add(store, record(m=1))
    add(store, record(m=2))
    add(store, record(m=4), environment=replace(ENVIRONMENT, torch="2.6.0"))
    assert len(rows(url, "device")) == 1
    assert len(rows(url, "environment")) == 2


def test_samples_keep_single_precision(store):
    trial = Trial(Problem(LAYER, 1), config(), "ok", 0.1, 0.1, 0.1, tuple(0.1 * i for i in range(100)))
    store.add_result(store.begin_sweep(H200, ENVIRONMENT, {}), [trial], None, None)
    (back,) = store.trials(trial.problem, H200)
    assert back.samples_us == pytest.approx(trial.samples_us, rel=2**-24)
    assert back.median_us == 0.1
