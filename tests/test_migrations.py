"""The schema: what migrations create is what the tables say, and every released revision upgrades."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from store_samples import (
    ENVIRONMENT,
    H200,
    LAYER,
    binary,
    config,
    evident_trials,
    record,
    trials,
    with_evidence,
)

from autotune.errors import DatabaseError
from autotune.paths import shipped
from autotune.runtime.stored import user_binary
from autotune.store import schema, trouble
from autotune.store.database import Database
from autotune.store.schema import upgrade
from autotune.store.store import Store
from autotune.store.tables import METADATA
from autotune.store.trouble import known_revisions

FROZEN = sorted((Path(__file__).parent / "frozen").glob("*.sql"))

LATER = """
import sqlalchemy as sa
from alembic import op

revision = "9998"
down_revision = "{previous}"


def upgrade() -> None:
    op.add_column("record", sa.Column("remark", sa.String))
    {then}
"""


def thaw(dump: Path, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(dump.read_text(encoding="utf-8"))


@pytest.fixture
def later(tmp_path, monkeypatch):
    """Makes this autotune one that has a further migration, with `then` at its end."""

    def add(then: str = "") -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(shipped("migrations"), folder, ignore=shutil.ignore_patterns("__pycache__"))
        text = LATER.format(previous=known_revisions()[-1], then=then)
        (folder / "versions" / "9998_later.py").write_text(text)
        for module in (schema, trouble):
            monkeypatch.setattr(module, "shipped", lambda _: folder)

    return add


def test_file_names_and_migrations_agree():
    config = Config()
    config.set_main_option("script_location", str(shipped("migrations")))
    revisions = [each.revision for each in ScriptDirectory.from_config(config).walk_revisions()]
    assert known_revisions() == revisions[::-1]


def test_migrations_create_what_the_tables_say(tmp_path):
    path = tmp_path / "new.db"
    assert upgrade(str(path)) == known_revisions()[-1]
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        for table in METADATA.tables.values():
            unique = {
                tuple(each["column_names"])
                for each in sa.inspect(connection).get_unique_constraints(table.name)
            }
            said = {
                tuple(column.name for column in each.columns)
                for each in table.constraints
                if isinstance(each, sa.UniqueConstraint)
            }
            assert unique == said
    engine.dispose()


def test_a_new_database_has_the_newest_revision(tmp_path):
    path = str(tmp_path / "new.db")
    database = Database(path)
    assert database.revision() is None
    assert not Path(path).exists()
    Store.open(path).close()
    assert database.revision() == known_revisions()[-1]
    database.close()


def test_every_revision_has_a_frozen_database():
    assert [dump.stem for dump in FROZEN] == known_revisions()


@pytest.mark.parametrize("dump", FROZEN, ids=lambda dump: dump.stem)
def test_a_frozen_database_upgrades_and_keeps_all(tmp_path, dump):
    path = tmp_path / "old.db"
    thaw(dump, path)
    assert upgrade(str(path)) == known_revisions()[-1]
    second = record(m=16, best=config(16, 4), at=1)
    has_evidence = dump.stem >= "0002"
    with Store.open(str(path)) as store:
        assert store.records() == [record(), with_evidence(second) if has_evidence else second]
        assert store.trials(record().problem, H200) == trials(record())
        assert store.trials(second.problem, H200) == (evident_trials if has_evidence else trials)(second)
        assert store.devices() == [H200]
        assert store.environment(H200) == ENVIRONMENT
        again = store.begin_sweep(H200, ENVIRONMENT, {})
        assert again == 2
        store.add_result(again, trials(record()), record(), binary())
        assert len(store.records()) == 2
    assert user_binary(path, "unit") == binary().cubin


def test_an_older_schema_waits_for_its_owner(tmp_path, later):
    path = str(tmp_path / "mine.db")
    with Store.open(path) as store:
        store.add_result(store.begin_sweep(H200, ENVIRONMENT, {}), [], record(), None)
    before = known_revisions()[-1]
    later()
    with pytest.raises(DatabaseError) as raised:
        Store.open(path)
    assert str(raised.value) == (
        f"database {path} has schema revision {before}, older than 9998 of this autotune; "
        f"run: autotune db upgrade --db {path}"
    )
    assert upgrade(path) == "9998"
    assert upgrade(path) == "9998"
    with Store.open(path) as store:
        assert store.records() == [record(layer=LAYER)]


def test_an_upgrade_that_fails_changes_nothing(tmp_path, later):
    path = str(tmp_path / "mine.db")
    Store.open(path).close()
    before = known_revisions()[-1]
    later('op.execute("INSERT INTO nowhere VALUES (1)")')
    with pytest.raises(DatabaseError, match="nowhere"):
        upgrade(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (before,)
        columns = {row[1] for row in connection.execute("PRAGMA table_info(record)")}
    assert "remark" not in columns
