"""Files and names that are damaged or odd: nothing waits for them, and one line says what is wrong."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from lookup_world import PROBLEM, SmallFamily, make_small_world, ship, store
from store_samples import ENVIRONMENT, H200, LAYER, config, record

from autotune.cli import main
from autotune.daemon.link import is_final
from autotune.records.lookup import Lookup, lookup
from autotune.records.misses import LIMIT_BYTES, Miss, append, miss_file, read
from autotune.store.schema import upgrade
from autotune.store.store import Store
from autotune.values.errors import DatabaseError
from autotune.values.layer import Problem
from autotune.values.paths import default_database


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch) -> Path:
    return make_small_world(tmp_path, monkeypatch)


LINES = {
    "no UTF-8": b"\xff\xfe",
    "no JSON": b"{",
    "a number": b"7",
    "nesting": b"[" * 100_000,
    "digits": b'{"n": ' + b"9" * 5000 + b"}",
    "endless": b" " * (1 << 20),
}


@pytest.mark.parametrize("line", LINES)
def test_a_shipped_line_that_does_not_read_costs_nothing_but_itself(tmp_path, line):
    ship(tmp_path, record(m=1), record(m=2, best=config(16)))
    (path,) = (tmp_path / "shipped").iterdir()
    header, first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join((header, LINES[line], first, LINES[line], second)) + b"\n")
    found = Lookup(H200)
    with pytest.warns(UserWarning, match=r"h200\.jsonl: lines left out: 2; the first: .*line 2: ") as caught:
        answers = [found.answer(Problem(LAYER, m)) for m in (1, 2)]
    assert [answer.source for answer in answers] == ["shipped", "shipped"]
    assert len(caught) == 1


def test_a_shipped_file_that_is_too_large_or_none(tmp_path):
    ship(tmp_path, record(best=config(32)))
    os.mkfifo(tmp_path / "shipped" / "a.jsonl")
    with open(tmp_path / "shipped" / "b.jsonl", "wb") as file:
        file.truncate(1 << 40)
    with pytest.warns(UserWarning, match="no file of records") as caught:
        assert Lookup(H200).answer(PROBLEM).config == config(32)
    assert len(caught) == 2


def test_whatever_a_source_raises_is_a_warning(database, monkeypatch):
    store(database, record())

    def fail(*_: object) -> None:
        raise MemoryError("no more\nof it")

    monkeypatch.setattr("autotune.records.sources.user_records", fail)
    with pytest.warns(UserWarning, match=r"user\.db cannot be read: no more of it"):
        assert Lookup(H200).answer(PROBLEM).source == "default"


ODD = {
    "a pipe": (lambda path: os.mkfifo(path), "is no file"),
    "a folder": (Path.mkdir, "is no file"),
    "a pipe beside it": (lambda path: os.mkfifo(f"{path}-wal"), "-wal is no file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is no file"),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_file_is_not_opened(database, odd, capsys, monkeypatch):
    monkeypatch.setattr(SmallFamily, "kind", "cpu")
    make, words = ODD[odd]
    make(database)
    with pytest.warns(UserWarning, match=words):
        assert lookup(LAYER, device="cpu", db=database).source == "default"
    for opening in (Store.open, upgrade):
        with pytest.raises(DatabaseError, match=words):
            opening(database)
    assert main(["jobs", "--db", str(database)]) == 1
    assert main(["doctor", "--db", str(database)]) == 1
    assert "database: broken" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["~nobody-has-this-name/x.db", "a\0b", Path("a\0b")])
def test_a_name_that_no_file_can_have(name):
    for opening in (Store.open, upgrade):
        with pytest.raises(DatabaseError, match=r"use another --db"):
            opening(name)
    with pytest.warns(UserWarning, match=r"use another --db \(going on without it\)"):
        assert Lookup(H200, name).answer(PROBLEM).source == "default"
    assert miss_file(name) == miss_file(default_database())


def test_a_path_serves_where_a_text_does(tmp_path, monkeypatch):
    named = tmp_path / "named.db"
    store(named, record(best=config(16)))
    assert Lookup(H200, named).answer(PROBLEM).source == "exact"
    assert miss_file(named) == miss_file(str(named))
    with Store.open(named) as opened:
        assert opened.name == str(named)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Lookup(H200, Path("~/named.db")).answer(PROBLEM).source == "exact"


def test_notes_are_read_as_far_as_they_may_grow(tmp_path):
    notes = tmp_path / "notes"
    append(notes, Miss(PROBLEM, H200.name, H200.arch, "sources", "default", 1))
    with notes.open("r+b") as file:
        file.truncate(LIMIT_BYTES * 1000)
    assert [miss.problem for miss in read(notes)] == [PROBLEM]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no file"):
        list(read(tmp_path / "pipe"))


def test_a_daemon_waits_for_a_lock_and_not_for_a_damaged_file(database, monkeypatch):
    monkeypatch.setattr("autotune.store.database.BUSY_S", 0)
    store(database, record())
    with Store.open(database) as opened, closing(sqlite3.connect(database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseError, match="stayed locked") as locked:
            opened.begin_sweep(H200, ENVIRONMENT, {})
        holder.execute("ROLLBACK")
    os.truncate(database, 20_000)
    with pytest.raises(DatabaseError, match="is damaged") as damaged, Store.open(database) as opened:
        opened.records()
    assert (is_final(locked.value), is_final(damaged.value)) == (False, True)
