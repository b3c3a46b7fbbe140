"""Sweep and look up on the CPU: what was swept is what a model gets."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from command_line import PROGRAM, autotune

from autotune.store.store import Store
from autotune.values.counts import counted
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem

SMALL = ("--shapes", "n=256,k=256", "--m", "1,3", "--device", "cpu", "--budget", "30s", "--db", "here.db")
LAYER = Layer(256, 256)


def lines_of_json(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_sweep_then_lookup(tmp_path: Path) -> None:
    swept = autotune("sweep", *SMALL, "--json", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    assert "m=3 is served by the bucket m=4" in swept.stderr
    winners = lines_of_json(swept.stdout)
    assert [winner["m"] for winner in winners] == [1, 4]
    with Store.open(str(tmp_path / "here.db")) as store:
        stored = {record.problem: record for record in store.records()}
    assert set(stored) == {Problem(LAYER, 1), Problem(LAYER, 4)}
    for winner in winners:
        record = stored[Problem(LAYER, int(str(winner["m"])))]
        assert winner["config"] == str(record.config)
        assert winner["device"] == record.device == cpu_device().name
        assert winner["median_us"] == pytest.approx(record.median_us)
        assert winner["default_us"] == pytest.approx(record.default_us)
        assert not winner["resumed"]

    found = autotune(
        "lookup", "--n", "256", "--k", "256", "--m", "1,3", "--device", "cpu", "--db", "here.db",
        "--require", "exact", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    for answer, winner in zip(json.loads(found.stdout), winners, strict=True):
        assert answer == {
            "n": 256,
            "k": 256,
            "group_size": 128,
            "dtype": "fp16",
            "zero_point": True,
            "m": 3 if winner["m"] == 4 else 1,
            "device": winner["device"],
            "config": winner["config"],
            "median_us": winner["median_us"],
            "default_us": winner["default_us"],
            "expected_us": None,
            "unverified": None,
            "source": "exact",
        }

    again = autotune("sweep", *SMALL, "--json", cwd=tmp_path)
    assert [
        (each["m"], each["config"], each["resumed"], each["trials"]) for each in lines_of_json(again.stdout)
    ] == [(winner["m"], winner["config"], True, 0) for winner in winners]

    table = autotune("sweep", *SMALL, cwd=tmp_path)
    rows = [line.split() for line in table.stdout.splitlines()]
    assert rows[0][:2] == ["layer", "m"]
    assert [row[:2] for row in rows[1:]] == [["256x256", "1"], ["256x256", "4"]]
    assert all(row[-1] == winner["config"] for row, winner in zip(rows[1:], winners, strict=True))
    assert "2 of 2 problems stored, 2 of them from before" in table.stderr

    one = ("--shapes", "n=256,k=256", "--m", "1", "--device", "cpu", "--db", "here.db")
    explained = autotune("lookup", *one, "--explain", cwd=tmp_path)
    record = stored[Problem(LAYER, 1)]
    for evidence in (record.created_at, record.source_hash, str(record.default_config), "source: exact"):
        assert evidence in explained.stdout


def test_lookup_without_records_is_the_default(tmp_path: Path) -> None:
    plain = ("lookup", "--n", "264", "--k", "256", "--m", "1", "--device", "cpu", "--db", "none.db")
    found = autotune(*plain, "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    (answer,) = json.loads(found.stdout)
    assert answer["source"] == "default"
    assert answer["median_us"] is None
    required = autotune(*plain, "--require", "exact", cwd=tmp_path)
    assert required.returncode == 3
    assert "without an exact record: 1 of 1 problem; the first: " in required.stderr
    assert "n=264" in required.stdout or "264x256" in required.stdout


def test_lookup_with_only_defaults_says_how_to_sweep(tmp_path: Path) -> None:
    """The command does it, word for word."""
    options = ("--m", "1,2", "--device", "cpu", "--db", "here.db")
    lookup = ("lookup", "--n", "72", "--k", "64", "--group-size", "32", "--dtype", "fp32", *options)
    found = autotune(*lookup, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    (line,) = found.stderr.splitlines()
    advice, _, command = line.partition(": autotune ")
    assert advice == "nothing is tuned here; to tune"
    swept = autotune(*shlex.split(command), "--budget", "30s", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    again = autotune(*lookup, "--json", cwd=tmp_path)
    assert [each["source"] for each in json.loads(again.stdout)] == ["exact", "exact"]
    assert again.stderr == ""


def test_interrupted_sweep_keeps_what_is_done_and_goes_on(tmp_path: Path) -> None:
    arguments = (
        "sweep", "--shapes", "n=256,k=256;n=512,k=256", "--m", "1,2,4,8", "--device", "cpu",
        "--budget", "16s", "--db", "here.db", "--json",
    )  # fmt: skip
    with subprocess.Popen(
        (*PROGRAM, *arguments), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        first = json.loads(running.stdout.readline())
        running.send_signal(signal.SIGINT)
        rest, errors = running.communicate()
    assert running.returncode == 130, errors
    done = [each for each in (first, *lines_of_json(rest)) if each["config"]]
    assert f"interrupted: {counted(len(done), 'problem')} stored" in errors.splitlines()
    assert "Traceback" not in errors

    finished = autotune(*arguments, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    outcomes = lines_of_json(finished.stdout)
    assert len(outcomes) == 8
    resumed = {(each["n"], each["m"]): each["config"] for each in outcomes if each["resumed"]}
    assert resumed == {(each["n"], each["m"]): each["config"] for each in done}


def test_two_sweeps_on_one_database_lose_nothing(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            (*PROGRAM, "sweep", "--shapes", shapes, "--m", "1,2", "--device", "cpu", "--budget", "8s",
             "--db", "here.db", "--json"),
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for shapes in ("n=256,k=256;n=384,k=256", "n=256,k=256;n=512,k=256")
    ]  # fmt: skip
    told = set()
    for sweep in running:
        output, errors = sweep.communicate()
        assert sweep.returncode == 0, errors
        # What other processes disturb is told as noisy and has no record.
        told |= {(each["n"], each["m"]) for each in lines_of_json(output) if each["config"]}
    with Store.open(str(tmp_path / "here.db")) as store:
        stored = [record.problem for record in store.records()]
    assert sorted(stored) == sorted(Problem(Layer(n, 256), m) for n, m in told)


def test_reader_that_stops_early_is_no_error(tmp_path: Path) -> None:
    with subprocess.Popen(
        (*PROGRAM, "lookup", "--shapes", "llama7b", "--device", "cpu", "--db", "none.db"),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        running.stdout.close()
        assert running.stderr is not None
        errors = running.stderr.read()
    assert "Traceback" not in errors
