"""`benchmarks/between.py` in a tiny form: what an answer for m costs against tuning m itself."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from places import BENCHMARKS
from undisturbed import work

from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.records.lookup import Lookup
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem

LAYER = Layer(64, 128, group_size=64)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[dict[str, Any]]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import between

    beside_others = LocalExecutor(cpu_device(), entry=work, allow_busy=True)
    monkeypatch.setattr(between, "local_executors", lambda *_, **__: [beside_others])
    files = ("--db", str(folder / "mine.db"), "--json", str(folder / "rows.jsonl"))
    where = ("--device", "cpu", "--shapes", "n=64,k=128,group_size=64")
    monkeypatch.setattr(sys, "argv", ["between.py", *where, *files, *more])
    between.main()
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_each_m_is_compared_with_the_best_of_its_own_race_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run(tmp_path, monkeypatch, "--m", "3,17")
    found = Lookup(cpu_device(), str(tmp_path / "mine.db"))
    assert [answer.problem.m for answer in found.answers(LAYER) if answer.source == "exact"] == [
        4,
        16,
        24,
        32,
    ]
    for m, row in zip((3, 17), rows, strict=True):
        problem = Problem(LAYER, m)
        assert (row["m"], row["answer"]) == (m, str(found.answer(problem).config))
        assert row["configs"] == len(registry.candidates(problem, cpu_device()))
        assert row["loss"][1] <= row["loss"][0] <= row["loss"][2]
        assert row["best_us"] <= row["answer_us"]
    mean = sum(row["loss"][0] for row in rows) / 2
    worst = max(row["loss"][0] for row in rows)
    shown = capsys.readouterr().out
    assert re.search(rf"2 problems: mean loss {mean:.2%}, worst {worst:.2%}", shown)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"n": 64, "torn')
    assert run(tmp_path, monkeypatch, "--m", "3,17") == rows
    assert capsys.readouterr().out == shown


def test_a_run_ends_at_its_limit_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").touch()
    assert run(tmp_path, monkeypatch, "--m", "3,5", "--limit", "0") == []
    assert len(run(tmp_path, monkeypatch, "--m", "3,5")) == 2
