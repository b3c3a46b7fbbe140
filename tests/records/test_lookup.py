"""Look-up: each source in its order, and no trouble with a database stops it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lookup_world import DEFAULT, PROBLEM, SmallFamily, ask, make_small_world, ship, store
from places import ROOT, SUPPORT
from store_samples import (
    A100,
    FAMILY,
    H100,
    H200,
    LAYER,
    RIVAL,
    as_ordinary_user,
    binary,
    config,
    reachable_folder,
    record,
)

from autotune.cli import main
from autotune.jit import compiler
from autotune.records.lookup import Lookup, lookup
from autotune.store.text import read_text
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.errors import DeviceError
from autotune.values.layer import Layer, Problem


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch) -> Path:
    return make_small_world(tmp_path, monkeypatch)


@pytest.fixture
def public_folder(monkeypatch) -> Iterator[Path]:
    """A folder that an ordinary user reaches, unlike pytest's own, with nothing shipped in it."""
    with reachable_folder() as folder:
        monkeypatch.setattr("autotune.store.reading.shipped", lambda _: folder / "shipped")
        yield folder


def test_exact_record_of_the_users_database(database):
    store(database, record(best=config(16)))
    answer = ask()
    assert (answer.source, answer.config, answer.device) == ("exact", config(16), "NVIDIA H200")
    assert (answer.median_us, answer.default_us) == (5.25, 7.75)
    assert answer.record == record(best=config(16))
    assert answer.problem == Problem(LAYER, 1)


def test_shipped_record_without_a_database(tmp_path, database):
    ship(tmp_path, record(best=config(32)))
    answer = ask()
    assert (answer.source, answer.config, answer.median_us) == ("shipped", config(32), 5.25)
    assert not database.exists()


def test_the_users_record_goes_before_the_shipped_one(tmp_path, database):
    ship(tmp_path, record(best=config(32), at=59))
    store(database, record(best=config(16), at=0))
    assert (ask().source, ask().config) == ("exact", config(16))


def test_the_newest_of_two_valid_records_answers(database):
    other = config(8, family=RIVAL)
    store(database, record(best=other, at=2), record(best=config(16), at=1))
    assert ask().config == other


def test_an_m_between_buckets_uses_the_bucket_above(database):
    store(database, record(m=4, best=config(16)), record(m=4096, best=config(64, 2)))
    answer = ask(m=3)
    assert (answer.source, answer.config, answer.problem.m) == ("exact", config(16), 3)
    assert (ask(m=9000).config, ask(m=9000).problem.m) == (config(64, 2), 9000)


@pytest.mark.parametrize(
    "other",
    [record(m=2), record(layer=Layer(4096, 4224)), record(device=H100)],
    ids=["m", "layer", "device"],
)
def test_what_is_of_another_problem_does_not_answer(database, other):
    store(database, other)
    answer = ask()
    assert (answer.source, answer.config, answer.record) == ("default", DEFAULT, None)
    assert answer.reason == "no record of this problem, and nothing predicts one"


def test_a_config_that_is_not_valid_here_is_passed_over(tmp_path, database):
    odd = Layer(4096, 4104, group_size=-1)
    store(database, record(layer=odd, best=config(8, 16)))
    ship(tmp_path, record(layer=odd, best=config(8, 8)))
    answer = ask(layer=odd)
    assert (answer.source, answer.config) == ("shipped", config(8, 8))


def test_an_invalid_exact_record_says_why_when_nothing_else_answers(database):
    odd = Layer(4096, 4104, group_size=-1)
    store(database, record(layer=odd, best=config(8, 16)))
    answer = ask(layer=odd)
    assert answer.source == "default"
    assert "split_k=16 does not divide k" in answer.reason


def test_a_config_without_a_tunable_of_its_family_is_passed_over(database):
    store(database, record(best=Config.of(FAMILY, tile_m=8)))
    assert (ask().source, ask().config) == ("default", DEFAULT)
    assert "has no split_k" in ask().reason


def test_a_record_of_another_kernel_source_is_never_used(database):
    store(database, replace(record(), source_hash="aaaaaaaabbbbbbbb"))
    answer = ask()
    assert answer.source == "default"
    assert "another kernel (aaaaaaaa, now 01234567)" in answer.reason
    assert ask(m=2).source == "default"


def test_a_problem_that_no_family_can_do():
    with pytest.raises(DeviceError, match="n=32"):
        ask(layer=Layer(32, 128))


def test_the_function_finds_the_device_and_the_database(tmp_path, monkeypatch):
    monkeypatch.setattr(SmallFamily, "kind", "cpu")
    mine = replace(record(best=config(16)), device=cpu_device().name, arch=cpu_device().arch)
    store(tmp_path / "named.db", mine)
    answer = lookup(LAYER, m=1, device="cpu", db=str(tmp_path / "named.db"))
    assert (answer.source, answer.config, answer.device) == ("exact", config(16), cpu_device().name)
    assert lookup(LAYER, m=1, device="cpu").source == "default"


def test_binaries_come_from_the_users_database(database):
    assert Lookup(H200).binary("unit") is None
    store(database, record(), cubin=binary())
    assert Lookup(H200).binary("unit") == binary().cubin
    assert Lookup(H200).binary("another unit") is None


@pytest.mark.usefixtures("own_cache")
def test_a_cached_kernel_of_a_shipped_record_needs_no_compiler(tmp_path, write, monkeypatch):
    if compiler.find_compiler() is None:
        pytest.skip("no CUDA compiler here")
    unit, made_by = write(AMOUNT=1), compiler.compiler_version()
    cubin = compiler.build(unit)
    monkeypatch.setattr(compiler, "_compiler", lambda: pytest.fail("asked for the compiler"))
    assert Lookup(H200).binary(unit.key) is None
    for version, found in (("nvrtc 0.0.1", None), (made_by, cubin)):
        ship(tmp_path, record(), compiled_by=version)
        assert Lookup(H200).binary(unit.key) == found
    assert Lookup(A100).binary(unit.key) is None


def test_a_damaged_binary_is_not_handed_out(database):
    store(database, record(), cubin=binary())
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE binary SET cubin = x'00'")
    found = Lookup(H200)
    with pytest.warns(UserWarning, match="kernel unit is damaged"):
        assert found.binary("unit") is None


def test_a_writer_does_not_disturb_look_up(database):
    store(database, record(best=config(16)), cubin=binary())
    writer = sqlite3.connect(database, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM record")
    assert ask().source == "exact"
    assert Lookup(H200).binary("unit") == binary().cubin
    writer.execute("COMMIT")
    assert ask().source == "default"
    writer.close()


def test_an_empty_file_is_no_trouble(database):
    database.touch()
    assert ask().source == "default"


def test_a_read_only_folder_is_no_trouble(database, public_folder):
    store(database, record(best=config(16)), cubin=binary())
    copy = public_folder / "image.db"
    copy.write_bytes(database.read_bytes())
    public_folder.chmod(0o555)
    with as_ordinary_user():
        assert ask(db=str(copy)).source == "exact"
        assert Lookup(H200, str(copy)).binary("unit") == binary().cubin


def test_a_folder_that_cannot_be_entered(public_folder):
    (public_folder / "mine").mkdir(mode=0)
    with (
        as_ordinary_user(),
        pytest.warns(UserWarning, match=r"mine\.db cannot be opened \(Permission denied\)"),
    ):
        assert Lookup(H200, str(public_folder / "mine" / "mine.db")).answer(PROBLEM).source == "default"


def test_a_file_that_cannot_be_read(public_folder):
    store(public_folder / "mine.db", record())
    (public_folder / "mine.db").chmod(0)
    with (
        as_ordinary_user(),
        pytest.warns(UserWarning, match=r"mine\.db cannot be opened; check its permissions"),
    ):
        assert Lookup(H200, str(public_folder / "mine.db")).answer(PROBLEM).source == "default"


def corrupt(database: Path) -> None:
    database.write_bytes(b"not a database at all" * 500)


def damage(database: Path) -> None:
    store(database, record())
    pages = database.read_bytes()
    database.write_bytes(pages[:4096] + b"\xff" * (len(pages) - 4096))


def run(database: Path, statement: str) -> None:
    store(database, record())
    with sqlite3.connect(database) as connection:
        connection.execute(statement)


TROUBLES = {
    "corrupt": (corrupt, "is not a SQLite database"),
    "damaged": (damage, "is damaged"),
    "newer": (
        lambda path: run(path, "UPDATE alembic_version SET version_num = '9999'"),
        "revision 9999, made by a newer autotune",
    ),
    "foreign": (lambda path: run(path, "DROP TABLE alembic_version"), "belongs to another program"),
    "config": (lambda path: run(path, "UPDATE record SET config = '?'"), "does not read as family"),
    "time": (
        lambda path: run(path, "UPDATE record SET median_us = 'fast'"),
        "median_us='fast' is not a finite",
    ),
    "folder": (Path.mkdir, "is no file"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_is_warned_of_once_and_the_next_source_answers(tmp_path, database, trouble):
    make, words = TROUBLES[trouble]
    make(database)
    ship(tmp_path, record(best=config(32)))
    with pytest.warns(UserWarning, match=words) as caught:
        answers = [Lookup(H200).answer(PROBLEM) for _ in range(3)]
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert {(answer.source, answer.config) for answer in answers} == {("shipped", config(32))}


def test_a_locked_database(tmp_path, database, monkeypatch):
    store(database, record())
    ship(tmp_path, record(best=config(32)))
    monkeypatch.setattr("autotune.store.readonly._BUSY_S", 0)
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("PRAGMA journal_mode=DELETE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.warns(UserWarning, match="is locked by another process"):
        answer = Lookup(H200).answer(PROBLEM)
    holder.close()
    assert answer.source == "shipped"


def test_another_kind_of_database_names_the_remedy():
    with pytest.warns(UserWarning, match="reads a local SQLite file only") as caught:
        found = Lookup(H200, "postgresql://me:secret@host/fleet")
    assert "secret" not in str(caught[0].message)
    assert found.answer(PROBLEM).source == "default"
    assert found.binary("unit") is None


def test_a_damaged_shipped_file_does_not_hide_the_others(tmp_path):
    ship(tmp_path, record(best=config(32)))
    (tmp_path / "shipped" / "a-damaged.jsonl").write_text("{")
    with pytest.warns(UserWarning, match=r"a-damaged\.jsonl, line 1"):
        assert Lookup(H200).answer(PROBLEM).source == "shipped"


def test_what_the_package_ships_is_readable(monkeypatch):
    from autotune.store import reading as stored
    from autotune.values import paths

    monkeypatch.setattr(stored, "shipped", paths.shipped)
    for path in stored.shipped_files():
        _, records = read_text(path)
        assert records
        assert read_text(path, "another arch")[1] == []


def test_look_up_needs_the_standard_library_only(database):
    store(database, record())
    script = f"""
import sys
sys.path[:0] = [{str(SUPPORT)!r}, {str(ROOT)!r}]
from store_samples import H200, LAYER
from autotune.values.layer import Problem
from autotune.records.lookup import Lookup
found = Lookup(H200)
found.explain(found.answer(Problem(LAYER, 1)))
print(sorted({{"torch", "numpy", "sqlalchemy", "alembic", "click", "rich"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


def test_doctor_counts_shipped_records_of_todays_kernels_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("autotune.values.device.find_device", lambda _="auto": H200)
    old = replace(record(m=2), source_hash="another kernel")
    ship(tmp_path, record(), old)
    assert "ok" in shipped_line(capsys)
    assert "1 for NVIDIA H200, 1 for sm_90, 1 stale" in shipped_line(capsys)
    ship(tmp_path, old)
    assert "missing  0 for NVIDIA H200, 0 for sm_90, 1 stale" in shipped_line(capsys)


def shipped_line(capsys) -> str:
    """What doctor says of shipped records."""
    main(["doctor"])
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("shipped records"))


@pytest.mark.parametrize("shipped", [False, True])
def test_model_goes_before_graph_and_hot_never_answers(tmp_path, database, shipped):
    modes = ("model", "graph", "server", "hot")
    measured = {
        mode: replace(record(best=config(8 << at), at=at), mode=mode) for at, mode in enumerate(modes)
    }
    for first, mode in enumerate(modes):
        left = [measured[each] for each in modes[first:]]
        if shipped:
            path = tmp_path / "shipped" / "nvidia-h200.jsonl"
            path.unlink(missing_ok=True)
            if mode != "hot":
                ship(tmp_path, *left)
        else:
            database.unlink(missing_ok=True)
            store(database, *left)
        answer = ask()
        expected = (
            ("default", DEFAULT) if mode == "hot" else ("shipped" if shipped else "exact", config(8 << first))
        )
        assert (answer.source, answer.config) == expected


def test_a_stale_record_of_a_better_mode_gives_way(database):
    stale = replace(record(best=config(16), at=2), mode="model", source_hash="another source")
    store(database, stale, record(best=config(8), at=1))
    assert (ask().source, ask().config) == ("exact", config(8))
