"""The schema: what migrations create is what the tables say, and every released revision upgrades."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from databases import connected, query, rows
from places import FROZEN
from store_samples import (
    ENVIRONMENT,
    EVIDENCE,
    H200,
    LAYER,
    binary,
    config,
    evident_trials,
    record,
    trials,
)

from autotune.store import schema, trouble
from autotune.store.database import Database
from autotune.store.history import history
from autotune.store.queue import Queue
from autotune.store.reading import user_binary, user_evidence, user_records
from autotune.store.schema import upgrade
from autotune.store.store import Store
from autotune.store.tables import METADATA
from autotune.store.trouble import known_revisions
from autotune.values.errors import DatabaseError
from autotune.values.job import Job, Worker
from autotune.values.layer import Layer, Problem
from autotune.values.paths import shipped

FROZEN = sorted(FROZEN.glob("*.sql"))

THERE = {
    "device": H200.name,
    "arch": H200.arch,
    "source_hash": "a5a5a5a5a5a5a5a5",
    "created_at": 1750000000.25,
}
JOBS = [
    Job(
        **THERE,
        id=1,
        problem=Problem(LAYER, 1),
        priority=2.5,
        state="done",
        attempts=1,
        worker="host:1:0",
        lease_until=None,
        not_before=1750000000.25,
        reason=None,
    ),
    Job(
        **THERE,
        id=2,
        problem=Problem(LAYER, 16),
        priority=1.5,
        state="parked",
        attempts=3,
        worker=None,
        lease_until=None,
        not_before=1750000120.5,
        reason="differs at [0, 3]",
    ),
]
WORKER = Worker(
    "host:1:0", "host", H200.name, H200.arch, "idle", last_seen=1750000300.0, started_at=1750000000.0
)

LATER = """
import sqlalchemy as sa
from alembic import op

revision = "9998"
down_revision = "{previous}"


def upgrade() -> None:
    op.add_column("record", sa.Column("remark", sa.String))
    {then}
"""


def thaw(dump: Path, url: str, tmp_path: Path) -> None:
    """Make the empty database what the dumped SQLite file was; migrations make the schema of PostgreSQL."""
    path = str(tmp_path / "frozen.db") if "://" in url else url
    with sqlite3.connect(path) as connection:
        connection.executescript(dump.read_text(encoding="utf-8"))
    if path == url:
        return
    config = Config()
    config.set_main_option("script_location", str(shipped("migrations")))
    with connected(path) as old, connected(url) as new:
        config.attributes["connection"] = new
        command.upgrade(config, dump.stem)
        metadata = sa.MetaData()
        metadata.reflect(old)
        for table in metadata.sorted_tables:
            if table.name == "alembic_version":
                continue
            for row in old.execute(sa.select(table)).mappings():
                new.execute(
                    sa.insert(table).values({name: row[name] for name in row if row[name] is not None})
                )
            if "id" in table.c:
                serial = f"pg_get_serial_sequence('{table.name}', 'id')"
                new.exec_driver_sql(f'SELECT setval({serial}, max(id)) FROM "{table.name}"')


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


def test_migrations_create_what_the_tables_say(empty_url):
    assert upgrade(empty_url) == known_revisions()[-1]
    with connected(empty_url) as connection:
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


def test_a_new_database_has_the_newest_revision(empty_url):
    database = Database(empty_url)
    assert database.revision() is None
    assert not Path(empty_url).exists()
    Store.open(empty_url).close()
    assert database.revision() == known_revisions()[-1]
    database.close()


def test_every_revision_has_a_frozen_database():
    assert [dump.stem for dump in FROZEN] == known_revisions()


@pytest.mark.parametrize("dump", FROZEN, ids=lambda dump: dump.stem)
def test_a_frozen_database_upgrades_and_keeps_all(empty_url, tmp_path, dump):
    thaw(dump, empty_url, tmp_path)
    assert upgrade(empty_url) == known_revisions()[-1]
    second = record(m=16, best=config(16, 4), at=1)
    has_evidence = dump.stem >= "0002"
    # They were frozen before evidence had these, which are no columns.
    older = replace(EVIDENCE, temperature_c=None, power_w=None, peers=(), candidates=None, learned_from=())
    evidence, mode = (older, "server") if has_evidence else (None, "graph")
    with Store.open(empty_url) as store:
        assert store.records() == [record(), replace(second, mode=mode, evidence=evidence)]
        assert store.trials(record().problem, H200) == trials(record())
        its_kernel = second.source_hash if dump.stem >= "0004" else None
        its_trials = (evident_trials if has_evidence else trials)(second)
        assert store.trials(second.problem, H200) == [
            replace(each, source_hash=its_kernel) for each in its_trials
        ]
        assert store.devices() == [H200]
        assert store.environment(H200) == ENVIRONMENT
        assert [event.event for event in history(store)] == ["sweep", "sweep"]
        again = store.begin_sweep(H200, ENVIRONMENT, {})
        assert again == 2
        store.add_result(again, trials(record()), record(), binary())
        assert len(store.records()) == 2
        if dump.stem >= "0003":
            assert Queue(store).jobs() == JOBS
            assert Queue(store).workers() == [WORKER]
    (stored,) = rows(empty_url, "binary")
    assert bytes(stored["cubin"]) == binary().cubin


def test_an_older_schema_waits_for_its_owner(empty_url, later):
    with Store.open(empty_url) as store:
        name = store.name
        store.add_result(store.begin_sweep(H200, ENVIRONMENT, {}), [], record(), None)
    before = known_revisions()[-1]
    later()
    with pytest.raises(DatabaseError) as raised:
        Store.open(empty_url)
    assert str(raised.value) == (
        f"database {name} has schema revision {before}, older than 9998 of this autotune; "
        f"run: autotune db upgrade --db {name}"
    )
    assert upgrade(empty_url) == "9998"
    assert upgrade(empty_url) == "9998"
    with Store.open(empty_url) as store:
        assert store.records() == [record(layer=LAYER)]


def test_an_upgrade_that_fails_changes_nothing(empty_url, later):
    Store.open(empty_url).close()
    before = known_revisions()[-1]
    later('op.execute("INSERT INTO nowhere VALUES (1)")')
    with pytest.raises(DatabaseError, match="nowhere"):
        upgrade(empty_url)
    assert query(empty_url, "SELECT version_num FROM alembic_version") == [{"version_num": before}]
    with connected(empty_url) as connection:
        columns = {column["name"] for column in sa.inspect(connection).get_columns("record")}
    assert "remark" not in columns


OLDER = """
INSERT INTO device VALUES (2, 'CPU', 'x86_64_avx2', 'cpu', 8, 1, 0, 1);
INSERT INTO record (id, device_id, n, k, group_size, dtype, zero_point, m, config, median_us, low_us, high_us,
    default_config, default_us, source_hash, created_at, environment_id, evidence)
VALUES
    (8, 2, 64, 72, 72, 'bf16', false, 4, 'cpu', 2, 2, 2, 'cpu', 2, 'hash', '2026-03-01T12:00:00+02:00', 1,
        '{"mode": "hot", "rounds": 9, "gain": [1, 1, 1]}'),
    (9, 2, 64, 128, 32, 'fp32', true, 4, 'cpu', 3, 3, 3, 'cpu', 3, 'hash', '2026-03-01T12:00:00', 1, NULL);
INSERT INTO job
VALUES (70, 64, 72, 72, 'fp16', false, 1, 'NVIDIA L4', 'sm_89', 'src', 1, 'queued', 0,
    NULL, NULL, 0, NULL, 0);
INSERT INTO worker
VALUES ('far', 'far', 'NVIDIA L4', 'sm_89', 'tuning', 70, 1, 0),
    ('gone', 'far', 'NVIDIA L4', 'sm_89', 'tuning', 71, 1, 0);
"""


def test_0005_says_in_its_own_columns_what_others_said_before(empty_url, tmp_path):
    thaw(next(dump for dump in FROZEN if dump.stem == "0004"), empty_url, tmp_path)
    with connected(empty_url) as connection:
        for statement in OLDER.split(";\n")[:-1]:
            connection.exec_driver_sql(statement)
    upgrade(empty_url)
    with Store.open(empty_url) as store:
        channel, grouped = (each for each in store.records() if each.device == "CPU")
        assert channel.problem.layer == Layer(64, 72, group_size=-1, dtype="bf16", zero_point=False)
        assert (channel.mode, channel.created_at) == ("hot", "2026-03-01T10:00:00+00:00")
        assert grouped.problem.layer == Layer(64, 128, group_size=32, dtype="fp32")
        assert (grouped.mode, grouped.created_at) == ("graph", "2026-03-01T12:00:00+00:00")
        assert "NVIDIA L4" not in {device.name for device in store.devices()}
        queue = Queue(store)
        assert [job.problem.layer.zero_point for job in queue.jobs(device="NVIDIA L4")] == [False]
        assert {each.name: each.job_id for each in queue.workers()} == {
            WORKER.name: None,
            "far": 70,
            "gone": None,
        }
        assert queue.claim("NVIDIA L4", "sm_89", "src", "far", 60.0).id == 70
        queue.add([(Problem(LAYER, 8), 1.0)], "NVIDIA L4", "sm_89", "src")
        assert max(job.id for job in queue.jobs()) == 71


@pytest.mark.parametrize("dump", FROZEN, ids=lambda dump: dump.stem)
def test_model_load_reads_every_older_schema(tmp_path, dump):
    database = tmp_path / "old.db"
    thaw(dump, str(database), tmp_path)
    content = database.read_bytes()
    one, two = record(), record(m=16, best=config(16, 4), at=1)
    has_evidence = dump.stem >= "0002"
    two = replace(two, mode="server" if has_evidence else "graph")
    assert user_records(database, H200, LAYER) == ([one, two], [])
    for other in ({"group_size": 64}, {"dtype": "bf16"}, {"zero_point": False}):
        assert user_records(database, H200, replace(LAYER, **other)) == ([], [])
    assert user_binary(database, "unit") == binary().cubin
    evidence, environment = user_evidence(database, two)
    assert (evidence is not None, environment) == (has_evidence, ENVIRONMENT)
    assert user_evidence(database, replace(two, created_at=one.created_at)) is None
    assert database.read_bytes() == content


ODD = (
    "UPDATE device SET kind = 'npu'",
    "UPDATE sweep SET status = 'lost'",
    "UPDATE trial SET status = 'lost'",
    "UPDATE trial SET mode = 'lost'",
    "UPDATE record SET mode = 'lost'",
    "UPDATE record SET trial_id = 99",
    "UPDATE job SET state = 'lost'",
    "UPDATE job SET device_id = 99",
    "UPDATE worker SET state = 'lost'",
    "UPDATE worker SET job_id = 99",
)


@pytest.mark.parametrize("statement", ODD)
def test_the_schema_itself_refuses_what_means_nothing(empty_url, tmp_path, statement):
    thaw(FROZEN[-1], empty_url, tmp_path)
    database = Database(empty_url)
    with pytest.raises(DatabaseError), database.transaction(write=True) as connection:
        connection.exec_driver_sql(statement)
    database.close()
