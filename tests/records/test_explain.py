"""What is told of an answer: its evidence, from where it is stored, and where it was measured."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from lookup_world import PROBLEM, ask, make_small_world, ship, store
from store_samples import ENVIRONMENT, EVIDENCE, H200, LAYER, record, with_evidence

from autotune.cli import explanation
from autotune.records.explanation import Explanation
from autotune.records.lookup import Lookup
from autotune.values.layer import Problem


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch) -> Path:
    return make_small_world(tmp_path, monkeypatch)


def test_an_explanation_has_the_evidence_that_no_look_up_reads(tmp_path, database):
    ship(tmp_path, with_evidence(record(m=4)))
    store(database, with_evidence(record(m=1)), record(m=2))
    found = Lookup(H200)
    exact, old, shipped = (found.answer(Problem(LAYER, m)) for m in (1, 2, 4))
    assert exact.record.evidence is None
    for answer, evidence in ((exact, EVIDENCE), (old, None), (shipped, EVIDENCE)):
        explanation = found.explain(answer)
        assert explanation.record == replace(answer.record, evidence=evidence)
        assert explanation.environment == ENVIRONMENT
    assert found.explain(exact).gain == (1.5, 1.25, 1.75)
    assert found.explain(exact).roofline == 3.5 / 5.25
    assert found.explain(old).gain == (7.75 / 5.25, None, None)
    assert found.explain(old).roofline is None


def test_a_near_answer_is_explained_by_its_record(tmp_path, database):
    ship(tmp_path, with_evidence(record(m=2)))
    store(database, replace(record(m=2), source_hash="another source"))
    found = Lookup(H200)
    answer = found.answer(PROBLEM)
    assert answer.source == "near"
    assert found.explain(answer).record == with_evidence(record(m=2))
    far = found.answer(Problem(LAYER, 512))
    assert far.source == "default"
    assert found.explain(far) is None


def test_the_lines_say_how_the_device_was(tmp_path):
    ship(tmp_path, with_evidence(record(m=2)))
    found = Lookup(H200)
    answer = found.answer(Problem(LAYER, 2))
    shown = explanation.lines(answer, found.explain(answer))
    assert ", 25 rounds, mode server, 1980 MHz, 41 °C, 350 W\n" in shown


@pytest.mark.parametrize(
    ("at", "days"),
    [
        ("2025-01-01T00:00:00+00:00", 30),
        ("2025-01-30T12:00:00", 1),
        ("2025-01-31T00:00:00+00:00", 0),
        ("?", None),
    ],
)
def test_age_is_in_whole_days(at, days):
    now = datetime(2025, 1, 31, 18, tzinfo=timezone.utc)
    assert Explanation(replace(record(), created_at=at), None).age_days(now) == days


@pytest.mark.parametrize("damage", ['{"mode": "graph"}', "{", "7"])
def test_damaged_evidence_stops_no_look_up_and_is_warned_of_when_asked_for(database, damage):
    store(database, with_evidence(record()))
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE record SET evidence = ?", (damage,))
    answer = ask()
    assert answer.source == "exact"
    with pytest.warns(UserWarning, match="the evidence of m=1,n=4096.* does not read"):
        assert Lookup(H200).explain(answer) == Explanation(replace(record(), mode="server"), None)
