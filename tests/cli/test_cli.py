"""The command line: usage, errors, exit codes, doctor and db."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from command_line import autotune
from places import FROZEN

from autotune.cli import VERBS
from autotune.values.device import cuda_devices

EXIT_ERROR, EXIT_USAGE = 1, 2


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS), ["db", "upgrade"]], ids=" ".join)
def test_every_help_has_an_example(verb: list[str], tmp_path: Path) -> None:
    shown = autotune(*verb, "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "Example" in shown.stdout
    assert shown.stderr == ""


def test_version(tmp_path: Path) -> None:
    assert autotune("--version", cwd=tmp_path).stdout.startswith("autotune ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-verb"],
        ["sweep"],
        ["sweep", "--shapes", "llama7b", "--m", "-1"],
        ["sweep", "--shapes", "llama7b", "--m", "0"],
        ["sweep", "--shapes", "llama7b", "--m", "1,x"],
        ["sweep", "--shapes", "llama7b", "--tp", "0"],
        ["sweep", "--shapes", "llama7b", "--budget", "soon"],
        ["sweep", "--shapes", "llama7b", "--budget", "0s"],
        ["sweep", "--shapes", "llama7b", "--budget", "5"],
        ["sweep", "--shapes", "llama7b", "--kernel", "kernels.py"],
        ["sweep", "--serving", "llama7b", "--max-num-seqs", "8", "--max-num-batched-tokens", "4"],
        ["sweep", "--shapes", "llama7b", "--dtype", "int8"],
        ["lookup"],
        ["lookup", "--n", "4096"],
        ["lookup", "--n", "4096", "--k", "4096", "--shapes", "llama7b"],
        ["lookup", "--shapes", "llama7b", "--require", "nearly"],
        ["lookup", "--n", "4096", "--k", "4096", "--serving", "llama7b"],
        ["lookup", "--serving", "llama7b", "--shapes", "llama7b"],
        ["sweep", "--serving", "llama7b", "--shapes", "llama7b"],
        ["sweep", "--serving", "llama7b", "--unfused"],
        ["sweep", "--shapes", "llama7b", "--max-num-seqs", "8"],
        ["sweep", "--serving", "llama7b", "--m", "1", "--max-num-batched-tokens", "8"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str], tmp_path: Path) -> None:
    ended = autotune(*arguments, cwd=tmp_path)
    assert ended.returncode == EXIT_USAGE
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["jobs", "add", "--shapes", "nonsense"], ["'nonsense'"]),
        (["bench", "--shapes", "nonsense"], ["'nonsense'"]),
        (["bench", "--shapes", "llama7b", "--device", "all"], ["'all'"]),
        (["daemon", "--device", "cpu,tpu"], ["'tpu'"]),
        (["sweep", "--shapes", "lama7b"], ["'lama7b'", "did you mean llama7b"]),
        (["sweep", "--shapes", "n=60,k=128"], ["n=60", "multiple of 8"]),
        (["sweep", "--shapes", "n=64,k=100,group_size=100"], ["k=100", "multiple of 8"]),
        (["sweep", "--shapes", "n=64,k=96"], ["k=96", "group_size=128"]),
        (["sweep", "--shapes", "llama7b", "--group-size", "100"], ["group_size=100"]),
        (["sweep", "--shapes", "llama7b", "--tp", "3"], ["tp=3", "num_attention_heads=32"]),
        (["sweep", "--shapes", "n=64,k=128", "--device", "tpu"], ["'tpu'"]),
        (["lookup", "--n", "60", "--k", "128", "--device", "cpu"], ["n=60"]),
    ],
    ids=lambda value: " ".join(value) if len(value) > 2 else None,
)
def test_a_value_that_means_nothing_is_wrong_usage(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    ended = autotune(*arguments, cwd=tmp_path)
    assert ended.returncode == EXIT_USAGE
    assert ended.stdout == ""
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert all(word in last for word in words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "--shapes", "n=64,k=128", "--device", "cuda:99"], ["cuda:99"]),
        (["sweep", "--shapes", "n=64,k=128", "--device", "cpu", "--db", "mysql://here/db"], ["mysql://"]),
    ],
    ids=lambda value: " ".join(value) if len(value) > 2 else None,
)
def test_an_error_is_one_line_that_names_the_value(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    ended = autotune(*arguments, cwd=tmp_path)
    assert ended.returncode == EXIT_ERROR
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert all(word in lines[0] for word in words)


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU")
@pytest.mark.parametrize("verb", [["sweep", "--shapes", "n=64,k=128"], ["daemon"]], ids=lambda verb: verb[0])
def test_all_gpus_are_asked_for_where_there_is_none(verb: list[str], tmp_path: Path) -> None:
    ended = autotune(*verb, "--device", "all", "--db", "here.db", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (EXIT_ERROR, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: device 'all': no NVIDIA GPU here (")
    assert line.endswith("); use --device cpu")


def test_unfused_leaves_out_what_is_fused(tmp_path: Path) -> None:
    place = ("--m", "1", "--device", "cpu", "--db", "none.db", "--json")
    shown = autotune("lookup", "--shapes", "llama3-8b", "--unfused", *place, cwd=tmp_path)
    assert {(each["n"], each["k"]) for each in json.loads(shown.stdout)} == {
        (4096, 4096),
        (1024, 4096),
        (14336, 4096),
        (4096, 14336),
    }


def test_sweep_says_what_is_wrong_with_a_database(tmp_path: Path) -> None:
    (tmp_path / "corrupt.db").write_bytes(b"this is not a database" * 100)
    (tmp_path / "file").touch()
    for name in ("corrupt.db", "file/below.db"):
        ended = autotune("sweep", "--shapes", "n=64,k=128", "--device", "cpu", "--db", name, cwd=tmp_path)
        assert ended.returncode == EXIT_ERROR
        assert [line for line in ended.stderr.splitlines() if line.startswith("error: ") and name in line]
        assert "Traceback" not in ended.stderr


def test_doctor_without_a_database(tmp_path: Path) -> None:
    ended = autotune("doctor", "--json", "--db", "none.db", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    checks = {check["name"]: check for check in json.loads(ended.stdout)}
    assert checks["extension"]["status"] == checks["cpu"]["status"] == checks["torch"]["status"] == "ok"
    assert checks["database"]["status"] == "missing"
    assert "autotune sweep" in checks["database"]["remedy"]
    assert not (tmp_path / "none.db").exists()
    for check in checks.values():
        assert (check["status"] == "ok") == (check["remedy"] == "")


def test_doctor_finds_and_db_upgrade_creates_the_database(tmp_path: Path) -> None:
    upgraded = autotune("db", "upgrade", "--db", "new.db", cwd=tmp_path)
    assert upgraded.returncode == 0, upgraded.stderr
    with sqlite3.connect(tmp_path / "new.db") as database:
        (revision,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    assert upgraded.stdout == f"{tmp_path / 'new.db'} is at schema revision {revision}\n"
    shown = autotune("doctor", "--db", "new.db", cwd=tmp_path)
    (line,) = (line for line in shown.stdout.splitlines() if line.startswith("database"))
    assert f"schema revision {revision}, 0 records" in line
    assert " ok " in line


def test_doctor_calls_no_sound_database_broken(tmp_path: Path) -> None:
    """One of an older autotune, and a server that is not there."""
    frozen = sorted(FROZEN.glob("*.sql"))
    with closing(sqlite3.connect(tmp_path / "old.db")) as database:
        database.executescript(frozen[-2].read_text())
    for name, words in (
        ("old.db", "run: autotune db upgrade"),
        ("postgresql://nobody@127.0.0.1:1/none", "127.0.0.1"),
    ):
        shown = autotune("doctor", "--db", name, cwd=tmp_path)
        (line,) = (line for line in shown.stdout.splitlines() if line.startswith("database "))
        assert " missing " in line
        assert words in line
        assert shown.returncode == 0


def test_doctor_says_what_to_do_about_a_corrupt_database(tmp_path: Path) -> None:
    (tmp_path / "corrupt.db").write_bytes(b"this is not a database" * 100)
    shown = autotune("doctor", "--db", "corrupt.db", cwd=tmp_path)
    assert shown.returncode == EXIT_ERROR
    assert shown.stderr.splitlines()[-1] == "error: database: broken, see above"
    (line,) = (line for line in shown.stdout.splitlines() if line.startswith("database"))
    assert " broken " in line
    assert "corrupt.db" in line
