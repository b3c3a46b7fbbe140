"""Rows that are damaged: what is whole answers, and the rest is told of in one line."""

from __future__ import annotations

import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

import pytest
from databases import change
from lookup_world import DEFAULT, PROBLEM, ask, make_small_world, store
from store_samples import (
    ENVIRONMENT,
    H100,
    H200,
    LAYER,
    RIVAL,
    binary,
    config,
    evident_trials,
    record,
    with_evidence,
)

from autotune.cli import main
from autotune.records.lookup import Lookup
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.errors import DatabaseError
from autotune.values.job import Worker
from autotune.values.layer import Layer, Problem

HERE = (H200.name, H200.arch, "sources")


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch) -> Path:
    return make_small_world(tmp_path, monkeypatch)


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
    *(("created_at", value) for value in ("text", "no UTF-8", "negative")),
    ("config", "text"),
    ("default_config", "text"),
}
"""Any line of text may be a date, and any word the name of a family that is not here."""


@pytest.mark.parametrize(
    ("column", "value"), [(a, b) for a in COLUMNS for b in VALUES if (a, b) not in SOUND]
)
def test_a_row_that_does_not_read_costs_nothing_but_itself(database, column, value):
    store(database, record(m=1), record(m=2, best=config(16)))
    change(database, f"UPDATE record SET {column} = {VALUES[value]} WHERE m = 1")
    found = Lookup(H200)
    with pytest.warns(UserWarning, match=r"user\.db: rows left out: 1; the first: ") as caught:
        answers = [found.answer(Problem(LAYER, m)) for m in (1, 2)]
    assert [(answer.source, answer.config) for answer in answers] == [
        ("default", DEFAULT),
        ("exact", config(16)),
    ]
    assert len(caught) == 1
    assert len(str(caught[0].message)) < 500
    assert "\n" not in str(caught[0].message)
    ask()  # once is enough


@pytest.mark.parametrize("column", ["n", "k", "scheme", "m", "mode", "source_hash", "device_id"])
@pytest.mark.parametrize("value", VALUES)
def test_a_row_of_no_problem_does_not_hide_the_others(database, column, value):
    store(database, record(m=1), record(m=2, best=config(16)))
    change(database, f"UPDATE record SET {column} = {VALUES[value]} WHERE m = 1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = [Lookup(H200).answer(Problem(LAYER, m)) for m in (1, 2)]
    assert [(answer.source, answer.config) for answer in answers] == [
        ("default", DEFAULT),
        ("exact", config(16)),
    ]


def test_a_row_that_no_one_asked_for_is_not_read(database):
    store(database, record(m=1), record(layer=Layer(64, 64, group_size=64)))
    change(database, "UPDATE record SET median_us = 'x' WHERE n = 64")
    assert ask().source == "exact"


def test_an_older_record_answers_when_the_newest_does_not_read(database):
    store(database, record(best=config(16), at=1), record(best=config(8, family=RIVAL), at=2))
    change(database, f"UPDATE record SET median_us = NULL WHERE config LIKE '{RIVAL}:%'")
    with pytest.warns(UserWarning, match="rows left out: 1"):
        answer = Lookup(H200).answer(PROBLEM)
    assert (answer.source, answer.config) == ("exact", config(16))


def test_another_device_that_does_not_read_is_not_asked_for(database):
    store(database, record(), record(device=H100))
    change(database, "UPDATE device SET name = x'00' WHERE name = 'NVIDIA H100'")
    assert ask().source == "exact"


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
    "evidence",
    [
        *("'{'", "7", "'null'", f"'{'[' * 100_000}'", '\'{"gain": [1, 1, 1], "mode": 3}\''),
        *(
            f'\'{{"gain": [1, 1, 1], "mode": "graph", "rounds": 9, "peers": {peers}}}\''
            for peers in ('[["a", 0]]', '[["a", "1"]]', "[[3, 1]]", '[["a"]]', "3")
        ),
        *(
            f'\'{{"gain": [1, 1, 1], "mode": "graph", "rounds": 9, "learned_from": {tokens}}}\''
            for tokens in ('["16"]', "[-1]", "[1.5]", "3")
        ),
    ],
)
def test_evidence_that_does_not_read(database, evidence):
    store(database, with_evidence(record()))
    change(database, f"UPDATE record SET evidence = {evidence}")
    found = Lookup(H200)
    with pytest.warns(UserWarning, match="the evidence of m=1,n=4096.* does not read"):
        assert found.explain(found.answer(PROBLEM)).environment is None


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
