"""Rows, files and names that are damaged or odd: what is whole answers, and the rest is one line."""

from __future__ import annotations

import os
import sqlite3
import sys
import warnings
from contextlib import closing
from dataclasses import replace
from math import log2
from pathlib import Path

import pytest
from lookup_world import PROBLEM, SmallFamily, ask, make_small_world, ship, store
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
    with_evidence,
)

from autotune.cli import main
from autotune.device import cpu_device
from autotune.errors import DatabaseError
from autotune.job import Worker
from autotune.layer import Layer, Problem
from autotune.runtime import stored
from autotune.runtime.lookup import Lookup, lookup
from autotune.runtime.misses import LIMIT_BYTES, Miss, append, miss_file, read
from autotune.store.queue import Queue
from autotune.store.schema import upgrade
from autotune.store.store import Store

HERE = (H200.name, H200.arch, "sources")


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch) -> Path:
    return make_small_world(tmp_path, monkeypatch)


def change(database: Path, *statements: str) -> None:
    """Run statements that no constraint stops, as if somebody else had written the file."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
        connection.commit()
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(";".join(statements))
        connection.commit()


def endless(table: str) -> str:
    """A view by the name of the table that has no last row."""
    rows = "WITH RECURSIVE x(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM x) SELECT i AS id, i AS n FROM x"
    return f"ALTER TABLE {table} RENAME TO gone; CREATE VIEW {table} AS {rows}"


VALUES = {
    "null": "NULL",
    "text": "'x'",
    "blob": "x'80ff'",
    "no UTF-8": "CAST(x'80ff' AS TEXT)",
    "5,000 digits": f"'{'9' * 5000}'",
    "infinite": "9e999",
    "negative": "-1.5",
    "large": "zeroblob(3000000)",
    "large text": "CAST(zeroblob(3000000) AS TEXT)",
}
COLUMNS = ("config", "median_us", "low_us", "high_us", "default_config", "default_us", "created_at")
SOUND = {
    *(("created_at", value) for value in ("text", "no UTF-8", "5,000 digits", "infinite", "negative")),
    ("config", "text"),
    ("default_config", "text"),
}
"""Any line of text may be a date, and any word the name of a family that is not here."""


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_row_that_does_not_read_costs_nothing_but_itself(database, column, value):
    if (column, value) in SOUND:
        return
    store(database, record(m=1), record(m=2, best=config(16)))
    change(database, f"UPDATE record SET {column} = {VALUES[value]} WHERE m = 1")
    found = Lookup(H200)
    with pytest.warns(UserWarning, match=r"user\.db: rows left out: 1; the first: ") as caught:
        answers = [found.answer(Problem(LAYER, m)) for m in (1, 2)]
    assert [(answer.source, answer.config) for answer in answers] == [
        ("near", config(16)),
        ("exact", config(16)),
    ]
    assert len(caught) == 1
    assert len(str(caught[0].message)) < 500
    assert "\n" not in str(caught[0].message)
    ask()  # once is enough


@pytest.mark.parametrize(
    "column", ["n", "k", "group_size", "dtype", "zero_point", "m", "source_hash", "device_id"]
)
@pytest.mark.parametrize("value", VALUES)
def test_a_row_of_no_problem_does_not_hide_the_others(database, column, value):
    store(database, record(m=1), record(m=2, best=config(16)))
    change(database, f"UPDATE record SET {column} = {VALUES[value]} WHERE m = 1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = [Lookup(H200).answer(Problem(LAYER, m)) for m in (1, 2)]
    assert [(answer.source, answer.config) for answer in answers] == [
        ("near", config(16)),
        ("exact", config(16)),
    ]


def test_a_row_that_no_one_asked_for_is_not_read(database):
    store(database, record(m=1), record(layer=Layer(64, 64, 64)))
    change(database, "UPDATE record SET median_us = 'x' WHERE n = 64")
    assert ask().source == "exact"


def test_near_layers_that_do_not_read_are_told_of(database):
    store(database, record(layer=Layer(4096, 4224), best=config(16)), record(layer=Layer(4096, 4352)))
    change(database, "UPDATE record SET k = 4095 WHERE k = 4352")
    with pytest.warns(UserWarning, match="k=4095 is not a positive multiple of 8"):
        assert Lookup(H200).answer(PROBLEM).config == config(16)


def test_an_older_record_answers_when_the_newest_does_not_read(database):
    store(database, record(best=config(16), at=1), record(best=config(8, family="dequant_matmul"), at=2))
    change(database, "UPDATE record SET median_us = NULL WHERE config LIKE 'dequant%'")
    with pytest.warns(UserWarning, match="rows left out: 1"):
        answer = Lookup(H200).answer(PROBLEM)
    assert (answer.source, answer.config) == ("exact", config(16))


def test_another_device_that_does_not_read_is_left_out(database):
    store(database, record(), record(device=H100))
    change(database, "UPDATE device SET name = x'00' WHERE name = 'NVIDIA H100'")
    with pytest.warns(UserWarning, match="rows left out: 1"):
        assert Lookup(H200).answer(PROBLEM).source == "exact"


@pytest.mark.parametrize("table", ["record", "device", "binary", "environment", "alembic_version"])
def test_a_view_without_an_end_in_the_place_of_a_table(tmp_path, database, table):
    store(database, record(), cubin=binary())
    ship(tmp_path, record(best=config(32)))
    change(database, endless(table))
    words, found = f"table {table} is missing|belongs to another program", Lookup(H200)
    with pytest.warns(UserWarning, match=words) as caught:
        assert (found.answer(PROBLEM).config, found.binary("unit")) == (config(32), None)
    assert len(caught) == 1
    with pytest.raises(DatabaseError, match=words):
        Store.open(database)


def test_a_file_that_takes_too_many_steps_is_given_up(tmp_path, database, monkeypatch):
    monkeypatch.setattr("autotune.runtime.readonly._STEPS", 0)
    monkeypatch.setattr("autotune.runtime.readonly._STEPS_AT_ONCE", 20)
    store(database, record())
    ship(tmp_path, record(best=config(32)))
    with pytest.warns(UserWarning, match="takes too long to read"):
        assert Lookup(H200).answer(PROBLEM).config == config(32)


def copies(database: Path, count: int, **columns: str) -> None:
    """As many more rows of the one record, whose columns are SQL expressions of the number i."""
    with closing(sqlite3.connect(database)) as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(record)") if row[1] != "id"]
        values = ", ".join(columns.get(name, name) for name in names)
        rows = f"WITH RECURSIVE x(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM x WHERE i < {count})"
        first = "(SELECT * FROM record ORDER BY id LIMIT 1)"
        connection.execute(f"INSERT INTO record ({', '.join(names)}) {rows} SELECT {values} FROM x, {first}")
        connection.commit()


def test_any_number_of_rows_of_a_problem_are_not_all_read(database):
    store(database, record(m=1))
    copies(database, 5000, source_hash="'hash ' || i")
    store(database, record(m=2, best=config(16)))
    found, bad = stored.user_records(database, H200, LAYER)
    assert (len(found), bad) == (65, [])
    assert ask(m=2).config == config(16)


def test_any_number_of_layers_are_not_all_near(database):
    store(database, record(m=1))
    copies(database, 20_000, n="8 * i", k="4224")
    found, bad = stored.near_records(database, H200, LAYER)
    nearest = sorted(range(8, 20_000, 8), key=lambda n: abs(log2(n / LAYER.n)))[:16]
    assert (sorted(each.problem.layer.n for each in found), bad) == (sorted(nearest), [])
    assert ask(layer=Layer(4104, 4096)).record.problem.layer == LAYER


def test_any_number_of_devices_are_not_all_read(database):
    fleet = [replace(H100, name=f"device {number}") for number in range(40)]
    store(database, record(best=config(16)))
    with Store.open(database) as opened:
        for device in fleet:
            sweep = opened.begin_sweep(device, ENVIRONMENT, {})
            opened.add_result(sweep, [], record(device=device), None)
    found, bad = stored.user_records(database, H200, LAYER)
    newest = {device.name for device in fleet[-16:]}
    assert ({each.device for each in found}, bad) == ({H200.name} | newest, [])
    assert ask().config == config(16)


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        (stored._PROBLEM, 7),
        (stored._LAYER, 6),
        (stored._NEAR.format(order="ASC"), 8),
        (stored._NEAR.format(order="DESC"), 8),
        (stored._RECORD, 1),
        (stored._DEVICE, 2),
        (stored._NAME, 1),
        (stored._BINARY, 1),
        (stored._EVIDENCE, 11),
    ],
)
def test_look_up_goes_by_index(database, query, parameters):
    store(database, record())
    with closing(sqlite3.connect(database)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {query}", [1] * parameters).fetchall()
    tables = [step for *_, step in plan if step.startswith(("SCAN", "SEARCH")) and "subquery" not in step]
    assert tables
    assert all(step.startswith("SEARCH") for step in tables)


@pytest.mark.parametrize(
    "damage",
    [
        "cubin = 1000000000000",
        "cubin = NULL",
        "cubin = 'text'",
        "sha256 = x'00'",
        "sha256 = NULL",
        "cubin = CAST(x'80ff' AS TEXT)",
    ],
)
def test_a_kernel_that_is_not_what_was_stored(database, damage):
    store(database, record(), cubin=binary())
    change(database, f"UPDATE binary SET {damage}")
    with pytest.warns(UserWarning, match="kernel unit is damaged"):
        assert Lookup(H200).binary("unit") is None


def test_a_kernel_that_is_none_is_not_handed_out(database):
    store(database, record(), cubin=binary(cubin=b"#!/bin/sh"))
    with pytest.warns(UserWarning, match="kernel unit is damaged"):
        assert Lookup(H200).binary("unit") is None


@pytest.mark.parametrize(
    "evidence", ["'{'", "7", "'null'", f"'{'[' * 100_000}'", '\'{"gain": [1, 1, 1], "mode": 3}\'']
)
def test_evidence_that_does_not_read(database, evidence):
    store(database, with_evidence(record()))
    change(database, f"UPDATE record SET evidence = {evidence}")
    found = Lookup(H200)
    with pytest.warns(UserWarning, match="the evidence of m=1,n=4096.* does not read"):
        assert found.explain(found.answer(PROBLEM)).environment is None


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
    with pytest.warns(UserWarning, match=r"h200\.jsonl: lines left out: 2; the first: .*line 2: ") as caught:
        found = Lookup(H200)
    assert [found.answer(Problem(LAYER, m)).source for m in (1, 2)] == ["shipped", "shipped"]
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

    monkeypatch.setattr("autotune.runtime.sources.user_records", fail)
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
        assert Lookup(cpu_device(), name)._sources.stored(LAYER) == []


def test_a_path_serves_where_a_text_does(tmp_path, monkeypatch):
    named = tmp_path / "named.db"
    store(named, record(best=config(16)))
    assert Lookup(H200, named).answer(PROBLEM).source == "exact"
    assert miss_file(named) == miss_file(str(named))
    with Store.open(named) as opened:
        assert opened.name == str(named)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Lookup(H200, Path("~/named.db")).answer(PROBLEM).source == "exact"


@pytest.mark.parametrize("value", ["'x'", "NULL", "CAST(x'ff' AS TEXT)", "x'ff'"])
def test_the_store_names_the_row_in_one_line(database, value):
    store(database, record(m=1), record(m=2))
    change(database, f"UPDATE record SET median_us = {value} WHERE m = 2")
    with Store.open(database) as opened:
        assert opened.records(H200, Problem(LAYER, 1)) == [record(m=1)]
        with pytest.raises(DatabaseError, match="restore a copy of it or use another --db") as raised:
            opened.records()
    assert str(raised.value).startswith(f"database {database}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("statement", "asked"),
    [
        ("UPDATE trial SET samples = 'text'", lambda store: store.trials(PROBLEM, H200)),
        ("UPDATE trial SET mode = 'hottest'", lambda store: store.trials(PROBLEM, H200)),
        ("UPDATE trial SET median_us = NULL", lambda store: store.trials(PROBLEM, H200)),
        ("UPDATE environment SET sources = '['", lambda store: store.environment(H200)),
        ("UPDATE environment SET sources = '7'", lambda store: store.environment(H200)),
        ("UPDATE device SET cores = 'many'", lambda store: store.devices()),
        ("UPDATE record SET evidence = '{'", lambda store: store.records()),
        ("UPDATE job SET priority = NULL", lambda store: Queue(store).jobs()),
        ("UPDATE job SET state = 'lost'", lambda store: Queue(store).jobs()),
        ("UPDATE worker SET last_seen = 'x'", lambda store: Queue(store).workers()),
    ],
)
def test_every_reader_of_the_store_says_what_does_not_read(database, statement, asked):
    with Store.open(database) as opened:
        sweep = opened.begin_sweep(H200, ENVIRONMENT, {})
        stored_record = with_evidence(record())
        opened.add_result(sweep, evident_trials(record()), stored_record, None)
        Queue(opened).add([(PROBLEM, 1.0)], *HERE)
        Queue(opened).beat(Worker("w", "host", *HERE[:2], "idle"))
        asked(opened)
        change(database, statement)
        with pytest.raises(DatabaseError, match=rf"^database {database}.* does not read"):
            asked(opened)


def test_a_job_that_does_not_read_does_not_stop_those_behind_it(database):
    with Store.open(database) as opened:
        queue = Queue(opened)
        queue.add([(Problem(LAYER, 1), 2.0), (Problem(LAYER, 2), 1.0)], *HERE)
        change(database, "UPDATE job SET k = 4095 WHERE m = 1")
        claimed = queue.claim(*HERE, "worker", 60.0)
        assert claimed is not None
        assert claimed.problem == Problem(LAYER, 2)
        assert queue.counts() == {"running": 1, "parked": 1}


@pytest.mark.parametrize("statement", ["UPDATE record SET config = '?'", "UPDATE record SET low_us = x'00'"])
def test_doctor_says_that_a_database_with_a_bad_row_is_broken(database, statement, capsys):
    store(database, record())
    change(database, statement)
    assert main(["doctor", "--db", str(database)]) == 1
    told = capsys.readouterr()
    (line,) = (line for line in told.out.splitlines() if line.startswith("database"))
    assert " broken " in line
    assert "record 1 does not read" in line
    assert told.err.splitlines()[-1] == "error: database: broken, see above"


def test_doctor_reads_every_page(database, capsys):
    store(database, *(record(m=m) for m in (1, 2, 4, 8)))
    pages = bytearray(database.read_bytes())
    with closing(sqlite3.connect(database)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'trial_problem'"
        ).fetchone()
    pages[4096 * (page - 1) : 4096 * page] = b"\xff" * 4096
    database.write_bytes(pages)
    assert main(["doctor", "--db", str(database)]) == 1
    assert "database: broken" in capsys.readouterr().err


def test_notes_are_read_as_far_as_they_may_grow(tmp_path):
    notes = tmp_path / "notes"
    append(notes, Miss(PROBLEM, *HERE, "near", 1))
    with notes.open("r+b") as file:
        file.truncate(LIMIT_BYTES * 1000)
    assert [miss.problem for miss in read(notes)] == [PROBLEM]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no file"):
        list(read(tmp_path / "pipe"))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 of Python 3.10 sets no limits")
def test_a_value_of_any_size_is_not_fetched(database):
    store(database, record())
    change(database, "UPDATE record SET config = CAST(zeroblob(100000000) AS TEXT)")
    with pytest.warns(UserWarning, match="string or blob too big"):
        assert Lookup(H200).answer(replace(PROBLEM)).source == "default"
    assert Lookup(A100).answer(PROBLEM).source == "default"
