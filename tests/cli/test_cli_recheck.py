"""Recheck, explain and export on the command line, after a sweep on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from command_line import autotune
from store_samples import record as sample_record

from autotune.cli.recheck import _cells
from autotune.console.text import microseconds
from autotune.search.recheck import Rechecked
from autotune.store.store import Store


def test_the_command_says_what_became_of_each_record(tmp_path: Path):
    place = ("--device", "cpu", "--db", "here.db")
    one, two = ("--shapes", "n=128,k=256", "--m", "1"), ("--shapes", "n=128,k=256", "--m", "1,4")
    swept = autotune("sweep", *one, *place, "--budget", "4s", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    shown = autotune("sweep", "--recheck", *two, *place, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    header, *rows = (line.split() for line in shown.stdout.splitlines())
    first, second = sorted(rows)
    assert header[:3] == ["layer", "m", "verdict"]
    assert first[1] == "1"
    assert first[2] in ("kept", "replaced")
    assert second[1:5] == ["4", "unchecked", "-", "-"]
    again = autotune("sweep", "--recheck", *one, *place, "--json", cwd=tmp_path)
    (line,) = map(json.loads, again.stdout.splitlines())
    with Store.open(str(tmp_path / "here.db")) as database:
        (record,) = database.records()
    assert line["verdict"] in ("kept", "replaced")
    assert line["after"]["config"] == str(record.config)
    nothing = autotune("sweep", "--recheck", "--shapes", "n=64,k=256", "--m", "1", *place, cwd=tmp_path)
    assert nothing.returncode == 1
    assert nothing.stderr.splitlines()[-1].startswith("error: there is nothing to recheck")


def test_without_shapes_every_record_of_the_device_is_rechecked(tmp_path: Path):
    place = ("--device", "cpu", "--db", "here.db")
    none = autotune("sweep", "--recheck", *place, cwd=tmp_path)
    assert none.returncode == 1
    assert "has no record of" in none.stderr.splitlines()[-1]
    layers = ("--shapes", "n=64,k=128,dtype=fp32", "--m", "1,4")
    swept = autotune("sweep", *layers, *place, "--budget", "30s", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    for more, expected in ((), [1, 4]), (("--m", "3"), [4]):
        shown = autotune("sweep", "--recheck", *more, *place, "--budget", "30s", "--json", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        lines = list(map(json.loads, shown.stdout.splitlines()))
        assert [(line["n"], line["dtype"]) for line in lines] == [(64, "fp32")] * len(expected)
        assert [line["m"] for line in lines] == expected
    partly = autotune("sweep", "--recheck", "--dtype", "fp32", *place, cwd=tmp_path)
    assert partly.returncode == 2
    assert "--shapes" in partly.stderr


def test_evidence_is_explained_and_samples_are_exported(tmp_path: Path):
    place = ("--device", "cpu", "--db", "here.db")
    one = ("--shapes", "n=128,k=256", "--m", "1")
    assert autotune("sweep", *one, *place, "--budget", "4s", cwd=tmp_path).returncode == 0
    with Store.open(str(tmp_path / "here.db")) as database:
        (record,) = database.records()
        (device,) = database.devices()
        trials = database.trials(record.problem, device)
        environment = database.environment(device)
    (fields,) = json.loads(autotune("lookup", *one, *place, "--explain", "--json", cwd=tmp_path).stdout)
    evidence = record.evidence
    assert fields["gain"] == list(evidence.gain)
    assert fields["rounds"] == evidence.rounds
    assert fields["power_w"] is None  # of a CPU nothing is read
    assert fields["runners_up"] == [list(each) for each in evidence.runners_up]
    assert fields["roofline"] == evidence.floor_us / record.median_us
    assert (fields["driver"], fields["torch"]) == (environment.driver, environment.torch)
    assert fields["age_days"] == 0
    lines = autotune("lookup", *one, *place, "--explain", cwd=tmp_path).stdout.splitlines()
    for start in ("time", "default", "speed-up", "roofline", "age", "kernel", "environment"):
        assert sum(line.startswith(f"  {start}: ") for line in lines) == 1
    rivals = [line for line in lines if line.startswith(("  tie: ", "  runner-up: "))]
    assert len(rivals) == len(evidence.ties) + len(evidence.runners_up)

    exported = autotune("export", "out", "--samples", "--db", "here.db", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    _, samples = exported.stdout.split()
    assert samples.endswith(".samples.jsonl")
    _, *rows = map(json.loads, (tmp_path / samples).read_text(encoding="utf-8").splitlines())
    assert [row["config"] for row in rows] == [str(trial.config) for trial in trials]
    assert [len(row["samples_us"]) for row in rows] == [len(trial.samples_us) for trial in trials]


def test_what_was_not_measured_has_no_time_of_now():
    """As when the budget ended before its turn: the record stays, but its old time is not today's."""
    record = sample_record()
    unchecked = Rechecked(
        record.problem, "unchecked", record, record, "the time budget ended before its turn"
    )
    assert _cells(unchecked)[:3] == ("unchecked", microseconds(record.median_us), "-")
    assert _cells(replace(unchecked, verdict="kept"))[2] == microseconds(record.median_us)
