"""However large or endless a database is, a look-up reads no more of it than it can use."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from math import log2
from pathlib import Path

import pytest
from databases import change
from lookup_world import PROBLEM, ask, make_small_world, ship, store
from store_samples import A100, ENVIRONMENT, H100, H200, LAYER, binary, config, record

from autotune.records.lookup import Lookup
from autotune.store import reading as stored
from autotune.store.store import Store
from autotune.values.errors import DatabaseError
from autotune.values.layer import Layer


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch) -> Path:
    return make_small_world(tmp_path, monkeypatch)


def endless(table: str) -> str:
    """A view by the name of the table that has no last row."""
    rows = "WITH RECURSIVE x(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM x) SELECT i AS id, i AS n FROM x"
    return f"ALTER TABLE {table} RENAME TO gone; CREATE VIEW {table} AS {rows}"


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


def test_a_file_without_a_schema_revision_is_damaged(tmp_path, database):
    store(database, record())
    ship(tmp_path, record(best=config(32)))
    change(database, "DELETE FROM alembic_version")
    with pytest.warns(UserWarning, match="is damaged: it has no schema revision"):
        assert Lookup(H200).answer(PROBLEM).config == config(32)


def test_a_file_that_takes_too_many_steps_is_given_up(tmp_path, database, monkeypatch):
    monkeypatch.setattr("autotune.store.readonly._STEPS", 0)
    monkeypatch.setattr("autotune.store.readonly._STEPS_AT_ONCE", 20)
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
    nearest = sorted(range(8, 20_000, 8), key=lambda n: abs(log2(n / LAYER.n)))[:4]
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
        (stored._PROBLEM, 5),
        (stored._LAYER, 4),
        (stored._NEAR.replace("{order}", "ASC"), 7),
        (stored._NEAR.replace("{order}", "DESC"), 7),
        (stored._RECORD, 1),
        (stored._DEVICE, 2),
        (stored._NAME, 1),
        (stored._BINARY, 1),
        (stored._EVIDENCE, 10),
    ],
)
def test_look_up_goes_by_index(database, query, parameters):
    store(database, record())
    with closing(sqlite3.connect(database)) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN {stored._TODAY.query(query)}", [1] * parameters
        ).fetchall()
    tables = [step for *_, step in plan if step.startswith(("SCAN", "SEARCH")) and "subquery" not in step]
    assert tables
    assert all(step.startswith("SEARCH") for step in tables)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 of Python 3.10 sets no limits")
def test_a_value_of_any_size_is_not_fetched(database):
    store(database, record())
    change(database, "UPDATE record SET config = CAST(zeroblob(100000000) AS TEXT)")
    with pytest.warns(UserWarning, match="string or blob too big"):
        assert Lookup(H200).answer(replace(PROBLEM)).source == "default"
    assert Lookup(A100).answer(PROBLEM).source == "default"
