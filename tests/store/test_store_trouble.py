"""Databases that cannot be used: one clear line each, which names the database and the remedy."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_samples import ENVIRONMENT, H200, as_ordinary_user, binary, reachable_folder, record, trials

from autotune.store.schema import upgrade
from autotune.store.store import Store
from autotune.values.errors import DatabaseError


def error_of(url: object, opening=Store.open) -> str:
    with pytest.raises(DatabaseError) as raised:
        opening(str(url))
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.fixture
def database(tmp_path) -> Path:
    path = tmp_path / "mine.db"
    Store.open(str(path)).close()
    return path


@pytest.fixture
def open_folder() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder


def set_revision(path: Path, revision: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))


@pytest.mark.parametrize("opening", [Store.open, upgrade])
def test_a_newer_schema_is_left_alone(database, opening):
    set_revision(database, "9999")
    assert error_of(database, opening) == (
        f"database {database} has schema revision 9999, made by a newer autotune; "
        "upgrade autotune or use another --db"
    )
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)


@pytest.mark.parametrize("opening", [Store.open, upgrade])
def test_a_file_that_is_no_database(tmp_path, opening):
    path = tmp_path / "notes.db"
    path.write_text("not a database, but long enough to have a header of its own\n" * 100)
    before = path.read_bytes()
    assert error_of(path, opening).startswith(f"database {path} is not a SQLite database; ")
    assert path.read_bytes() == before


def test_a_damaged_database(database):
    pages = database.read_bytes()
    database.write_bytes(pages[:4096] + b"\xff" * (len(pages) - 4096))
    message = error_of(database)
    assert message == f"database {database} is damaged; restore a copy of it or use another --db"


@pytest.mark.parametrize("opening", [Store.open, upgrade])
def test_another_programs_database(tmp_path, opening):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE song (title TEXT)")
    message = error_of(path, opening)
    assert message == f"database {path} belongs to another program; use another --db"
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("song",)]


@pytest.mark.parametrize("opening", [Store.open, upgrade])
def test_a_folder_without_write_permission(open_folder, opening):
    open_folder.chmod(0o555)
    with as_ordinary_user():
        message = error_of(open_folder / "mine.db", opening)
    assert message.startswith(f"database {open_folder}/mine.db cannot be opened; check its permissions")


def test_a_folder_that_cannot_be_created(open_folder):
    open_folder.chmod(0o555)
    with as_ordinary_user():
        message = error_of(open_folder / "new" / "mine.db")
    assert message.startswith(f"database {open_folder}/new/mine.db: its folder cannot be created (Permission")


def test_a_folder_that_cannot_be_entered(open_folder):
    open_folder.chmod(0o000)
    with as_ordinary_user():
        message = error_of(open_folder / "mine.db")
    assert message.startswith(f"database {open_folder}/mine.db cannot be opened (Permission denied)")


def test_a_file_without_write_permission(open_folder):
    path = open_folder / "mine.db"
    Store.open(str(path)).close()
    path.chmod(0o444)
    with as_ordinary_user():
        message = error_of(path)
    assert "check its permissions and its folder's" in message


def test_a_path_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    message = error_of(tmp_path / "file" / "mine.db")
    assert message.startswith(f"database {tmp_path}/file/mine.db: its folder cannot be created (")


def test_a_path_that_is_a_folder(tmp_path):
    assert error_of(tmp_path) == f"database {tmp_path} is no file; use another --db"


@pytest.mark.parametrize(
    "url", ["mysql://me:secret@host/db", "sqlite://", "nonsense://x", "postgresql//x://"]
)
def test_a_url_of_another_kind(url):
    message = error_of(url)
    assert "give a path, sqlite:///path or postgresql://user@host/name" in message
    assert "secret" not in message


def test_postgresql_without_its_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    message = error_of("postgresql://me:secret@host/fleet")
    assert "pip install 'autotune-int4[postgres]'" in message
    assert "secret" not in message


def test_postgresql_that_does_not_answer(tmp_path):
    pytest.importorskip("psycopg")
    message = error_of(f"postgresql://me:secret@/fleet?host={tmp_path}")
    assert message.startswith("database postgresql://me@/fleet?host=")


def test_a_full_disk_loses_only_what_did_not_fit(database):
    def leave_forty_pages(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count=40")

    sa.event.listen(sa.Engine, "connect", leave_forty_pages)
    try:
        with Store.open(str(database)) as store:
            sweep = store.begin_sweep(H200, ENVIRONMENT, {})
            store.add_result(sweep, trials(record(m=1)), record(m=1), None)
            with pytest.raises(DatabaseError, match=r"cannot grow: its disk is full; free some space"):
                store.add_result(sweep, trials(record(m=2)), record(m=2), binary(cubin=bytes(1 << 20)))
            assert store.records() == [record(m=1)]
            assert store.trials(record(m=2).problem, H200) == []
    finally:
        sa.event.remove(sa.Engine, "connect", leave_forty_pages)


def test_a_lock_that_is_never_released(database, monkeypatch):
    monkeypatch.setattr("autotune.store.database.BUSY_S", 0)
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Store.open(str(database)) as store:
        with pytest.raises(DatabaseError, match="stayed locked by another process") as raised:
            store.begin_sweep(H200, ENVIRONMENT, {})
        assert str(database) in str(raised.value)
        holder.execute("ROLLBACK")
        assert store.begin_sweep(H200, ENVIRONMENT, {}) == 1
    holder.close()
