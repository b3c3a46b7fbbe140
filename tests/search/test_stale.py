"""After an upgrade: what its kernels made stale is counted, and tuned again by a sweep or a daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import autotune
from daemons import LAYER, PROBLEM, add, special
from databases import query

from autotune.families import registry
from autotune.search.demand import STALE
from autotune.search.stale import stale_problems
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.device import cpu_device
from autotune.values.layer import Problem

PLACE = ("--device", "cpu", "--db", "here.db")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database of two problems, one of which another autotune measured."""
    folder = tmp_path_factory.mktemp("swept")
    shapes = ("--shapes", "n=256,k=256,group_size=64", "--m", "1,2")
    done = autotune("sweep", *shapes, *PLACE, "--budget", "30s", cwd=folder)
    assert done.returncode == 0, done.stderr
    for table in ("record", "trial"):
        query(str(folder / "here.db"), f"UPDATE {table} SET source_hash = '0123456789abcdef' WHERE m = 1")
    return folder


@pytest.fixture
def folder(swept: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    (tmp_path / "here.db").write_bytes((swept / "here.db").read_bytes())
    return tmp_path


def stale(folder: Path) -> list[Problem]:
    with Store.open(str(folder / "here.db")) as store:
        return stale_problems(store, cpu_device(), registry.families())


def test_a_sweep_tunes_again_what_is_stale_and_nothing_else(folder: Path) -> None:
    assert stale(folder) == [PROBLEM]
    shown = json.loads(autotune("doctor", "--json", "--db", "here.db", cwd=folder).stdout)
    (check,) = (each for each in shown if each["name"] == "stale records")
    assert check["detail"].startswith("1 problem of ")
    assert "autotune sweep --stale --device cpu" in check["remedy"]

    done = autotune("sweep", "--stale", *PLACE, "--budget", "2s", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    assert (line["n"], line["m"], line["resumed"]) == (256, 1, False)
    assert stale(folder) == []
    shown = json.loads(autotune("doctor", "--json", "--db", "here.db", cwd=folder).stdout)
    assert "stale records" not in {each["name"] for each in shown}

    again = autotune("sweep", "--stale", *PLACE, cwd=folder)
    assert (again.returncode, again.stdout) == (0, "")
    assert "is stale" in again.stderr


def test_other_tokens_are_left_as_they_are(folder: Path) -> None:
    done = autotune("sweep", "--stale", "--m", "2", *PLACE, cwd=folder)
    assert (done.returncode, done.stdout) == (0, "")
    assert stale(folder) == [PROBLEM]


@pytest.mark.parametrize("more", [("--shapes", "llama7b"), ("--recheck",), ("--dtype", "bf16")])
def test_a_sweep_of_what_is_stale_takes_no_other_choice(folder: Path, more: tuple[str, ...]) -> None:
    done = autotune("sweep", "--stale", *more, *PLACE, cwd=folder)
    assert done.returncode == 2
    assert more[0].replace("dtype", "shapes") in done.stderr


def test_a_daemon_tunes_it_when_all_else_is_done(folder: Path) -> None:
    wanted = Problem(LAYER, 4)
    add(folder / "here.db", wanted)
    with special(folder, once=True) as daemon:
        assert daemon.until("stale queued")["jobs"] == 1
        assert [daemon.until("done")["problem"] for _ in range(2)] == [str(wanted), str(PROBLEM)]
        assert daemon.end() == 0
    assert stale(folder) == []
    with Store.open(str(folder / "here.db")) as store:
        assert [(job.problem, job.priority) for job in Queue(store).jobs()] == [
            (wanted, 1.0),
            (PROBLEM, STALE),
        ]


def test_a_daemon_runs_on_beside_records_that_do_not_read(folder: Path) -> None:
    query(str(folder / "here.db"), "UPDATE record SET config = 'tiled:tile_n' WHERE m = 2")
    with special(folder, once=True) as daemon:
        assert "config" in daemon.until("stale records stay")["reason"]
        assert daemon.end() == 0
