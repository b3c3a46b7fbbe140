"""Pages over databases that are empty, newer, broken, locked, large, or that change while a page is open."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from command_line import autotune
from databases import change
from places import FROZEN
from store_samples import H200
from web_world import LAYER, fill, parsed, record, text

from autotune.store.queue import Queue
from autotune.store.schema import upgrade
from autotune.store.store import Store
from autotune.store.tables import RECORD
from autotune.values.layer import Layer, Problem
from autotune.web.coverage import ROWS
from autotune.web.query import Query, device_key
from autotune.web.site import VIEWS, Site

ONE = Problem(LAYER, 1)
PROBLEM = Query([("device", device_key(H200)), ("layer", str(LAYER)), ("m", "1")])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "autotune.db"


def trouble(path: Path | str, page: str = "coverage") -> str:
    found = Site(path).page(page, Query())
    assert found.status == 503
    return text(found.html)


@pytest.mark.parametrize("kind", ["missing", "no bytes", "no rows"])
def test_of_an_empty_database_every_page_is_there(path, kind):
    if kind == "no bytes":
        path.touch()
    elif kind == "no rows":
        upgrade(path)
    site = Site(path)
    for page in VIEWS.keys() - {"problem"}:
        assert site.page(page, Query()).status == 200, page
    assert "autotune sweep --shapes llama7b" in text(site.page("coverage", Query()).html)
    assert site.page("problem", PROBLEM).status == 404
    assert path.exists() == (kind != "missing")


def test_a_newer_and_an_older_database_say_what_to_do(path):
    fill(path, [record(ONE)])
    change(path, "UPDATE alembic_version SET version_num = '9999'")
    assert "made by a newer autotune; upgrade autotune" in trouble(path)
    older = path.with_name("older.db")
    with closing(sqlite3.connect(older)) as connection:
        connection.executescript((FROZEN / "0001.sql").read_text(encoding="utf-8"))
    assert f"run: autotune db upgrade --db {older}" in trouble(older)


def test_a_broken_database_is_one_line(path):
    path.write_bytes(b"no database at all " * 100)
    assert "is not a SQLite database" in trouble(path)
    path.unlink()
    fill(path, [record(Problem(LAYER, m)) for m in (1, 2, 4, 8, 16)])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    assert "is damaged" in trouble(path)


def test_serve_and_report_of_a_broken_database_end_with_one_line(path, tmp_path):
    path.write_bytes(b"no database at all " * 100)
    for arguments in (["serve", "--port", "0"], ["report", "here"]):
        ended = autotune(*arguments, "--db", str(path), cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == (
            f"error: database {path} is not a SQLite database; move it away or use another --db\n"
        )
    assert not (tmp_path / "here").exists()


def test_a_locked_database_says_so(path):
    fill(path, [record(ONE)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        assert "is locked by another process; load the page again" in trouble(path)
    assert Site(path).page("coverage", Query()).status == 200


def test_rows_that_do_not_read_are_left_out_and_counted(path):
    fill(path, [record(ONE), record(Problem(LAYER, 2))])
    change(path, "UPDATE record SET median_us = -1 WHERE m = 2", "UPDATE trial SET mode = 'odd' WHERE m = 1")
    said = text(Site(path).page("coverage", Query()).html)
    assert "1 row does not read and is left out; the first: record" in said
    assert "4 rows do not read" in text(Site(path).page("problem", PROBLEM).html)


def test_a_page_follows_a_database_that_changes(path):
    fill(path, [record(ONE)])
    site = Site(path)
    assert "1.20×" in site.page("coverage", Query()).html
    with Store.open(path) as store:
        store.add_result(
            store.begin_sweep(H200, store.environment(H200), {}), [], record(ONE, default_us=10.0), None
        )
    assert "2.00×" in site.page("coverage", Query()).html
    change(path, "DELETE FROM record", "DELETE FROM trial")
    assert "no trial of this problem" in text(site.page("problem", PROBLEM).html)
    change(path, "UPDATE alembic_version SET version_num = '9999'")
    assert site.page("coverage", Query()).status == 503
    path.unlink()
    assert site.page("coverage", Query()).status == 200


def test_a_device_that_only_jobs_name_has_no_map(path):
    fill(path, [record(ONE)])
    with Store.open(path) as store:
        Queue(store).add([(ONE, 1.0)], "NVIDIA H300", "sm_90", "0123456789abcdef")
    site = Site(path)
    assert "NVIDIA H300" in text(site.page("queue", Query()).html)
    for page in VIEWS.keys() - {"problem", "queue"}:
        found = site.page(page, Query())
        assert found.status == 200, page
        assert "NVIDIA H300" not in text(found.html), page


def test_a_page_is_one_state_of_the_database(path):
    fill(path, [record(ONE)])
    site = Site(path)
    with site.viewer.snapshot() as connection:
        first = connection.exec_driver_sql("SELECT count(*) FROM record").scalar()
        fill(path, [record(Problem(LAYER, 2))])
        assert connection.exec_driver_sql("SELECT count(*) FROM record").scalar() == first == 1


def test_ten_thousand_layers_come_in_pages(path):
    layers = [Layer(8 * n, 4096) for n in range(1, 10_001)]
    fill(path, [record(ONE)])
    rows = ",".join(f"({layer.n})" for layer in layers)
    columns = ", ".join(column.name for column in RECORD.c if column.name not in ("id", "n"))
    change(
        path,
        "DELETE FROM record WHERE n <> 4096",
        f"WITH fresh(n) AS (VALUES {rows}) INSERT INTO record (n, {columns}) "
        f"SELECT fresh.n, {columns} FROM fresh, record WHERE record.n = 4096 AND fresh.n <> 4096",
    )
    site = Site(path)
    for number, first in ((1, "8 × 4096"), (500, "79848 × 4096")):
        page = parsed(site.page("coverage", Query([("page", str(number))])).html)
        rows = [row for row in page.rows if row[0][0].isdigit()]
        assert (len(rows), rows[0][0]) == (ROWS, first)
    for page in VIEWS.keys() - {"problem"}:
        found = site.page(page, Query())
        assert found.status == 200, page
        assert len(found.html) < 1_000_000, page
    beyond = site.page("coverage", Query([("page", "99999")]))
    assert (beyond.status, "/?page=500" in beyond.html) == (404, True)


def test_a_url_with_thousands_of_parameters_costs_little(path):
    fill(path, [record(ONE)])
    pairs = [(f"a{number}", "1") for number in range(5000)]
    found = Site(path).page("coverage", Query(pairs))
    assert found.status == 200
    assert "a49=1" in found.html
    assert "a50=1" not in found.html


def test_no_password_is_shown():
    said = trouble("postgresql://me:hush%40hush@127.0.0.1:1/db?sslpassword=hushhush&connect_timeout=1")
    assert "postgresql://me@127.0.0.1:1/db" in said
    assert "hush" not in said
