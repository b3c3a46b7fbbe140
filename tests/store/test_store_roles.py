"""PostgreSQL's roles of `migrations/roles.sql`: each can do all that it needs, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lookup_world import SmallFamily
from postgres import Server
from store_samples import ENVIRONMENT, H200, LAYER, SOURCES, binary, record, trials

from autotune.families import registry
from autotune.records.exchange import export
from autotune.store import channels
from autotune.store.database import Database
from autotune.store.queue import Queue
from autotune.store.schema import upgrade
from autotune.store.store import Store
from autotune.store.tables import METADATA
from autotune.values.errors import DatabaseError
from autotune.values.job import Worker
from autotune.values.layer import Problem
from autotune.values.paths import shipped

HERE = (H200.name, H200.arch, "sources")
GRANTS, OWNER = "grant what migrations/roles.sql does", "can be changed by its owner only"
TABLES = sorted([*METADATA.tables, "alembic_version"])


@pytest.fixture
def database(postgres: Server, template: str) -> Iterator[str]:
    """The name of a database with the roles, in which a result and two jobs are."""
    name = postgres.create(template)
    for _ in range(2):
        postgres.execute((shipped("migrations") / "roles.sql").read_text(encoding="utf-8"), name)
    for login in ("reader", "worker", "publisher"):
        postgres.execute(f"DROP ROLE IF EXISTS {login}")
        postgres.execute(f"CREATE ROLE {login} LOGIN IN ROLE autotune_{login}")
    with Store.open(postgres.url(name)) as store:
        store.add_result(store.begin_sweep(H200, ENVIRONMENT, {}), trials(record()), record(), binary())
        Queue(store).add([(Problem(LAYER, 1), 1.0), (Problem(LAYER, 2), 1.0)], *HERE)
    yield name
    postgres.drop(name)


def refusal(url: str, statement: str) -> str:
    opened = Database(url)
    try:
        with pytest.raises(DatabaseError) as raised, opened.transaction() as connection:
            connection.exec_driver_sql(statement)
    finally:
        opened.close()
    return str(raised.value)


def test_a_worker_does_all_that_a_daemon_and_a_recheck_do(postgres, database):
    with Store.open(postgres.url(database, "worker")) as store:
        queue = Queue(store)
        assert queue.add([(Problem(LAYER, 1), 2.0), (Problem(LAYER, 4), 1.0)], *HERE) == 1
        queue.beat(Worker("host:1:0", "host", H200.name, H200.arch, "idle"))
        job, sweep = queue.claim(*HERE, "host:1:0", 60.0), store.begin_sweep(H200, ENVIRONMENT, {})
        assert queue.renew(job, 60.0)
        queue.complete(job, sweep, trials(record()), record(), binary())
        queue.fail(queue.claim(*HERE, "host:1:0", 60.0), "bad luck")
        queue.give_back(queue.claim(*HERE, "host:1:0", 60.0))
        store.add_result(sweep, [], None, None, [record()])
        store.finish_sweep(sweep, "finished")
        assert store.records() == []
        assert queue.counts() == {"done": 1, "queued": 2}
        assert len(queue.workers()) == 1


def test_a_reader_reads_everything(postgres, database, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "families", lambda: {name: SmallFamily(name) for name in SOURCES})
    with Store.open(postgres.url(database, "reader")) as store:
        assert store.records() == [record()]
        assert store.trials(record().problem, H200) == trials(record())
        assert len(export(store, tmp_path, samples=True)) == 2
        assert len(Queue(store).jobs()) == 2
        assert Queue(store).workers() == []


def test_a_reader_writes_nothing(postgres, database):
    url = postgres.url(database, "reader")
    with Store.open(url) as store, pytest.raises(DatabaseError) as raised:
        Queue(store).claim(*HERE, "me", 60.0)
    assert str(raised.value) == (
        f"database {store.name} refuses this to your role; let its owner grant what migrations/roles.sql does"
    )
    for table in TABLES:
        for statement in (f'INSERT INTO "{table}" DEFAULT VALUES', f'DELETE FROM "{table}"'):
            assert GRANTS in refusal(url, statement)


def test_a_publisher_alone_sets_channels(postgres, database):
    with Store.open(postgres.url(database, "publisher")) as store:
        for digest in ("a", "b", "b"):
            channels.promote(store, "stable", digest, f"mine@{digest}", b"content", "tried")
        assert channels.roll_back(store, "stable", "rollback")[1].bundle == "mine@a"
    with Store.open(postgres.url(database, "reader")) as store:
        assert channels.content(store, "stable") == ("mine@a", b"content")
    with Store.open(postgres.url(database, "worker")) as store, pytest.raises(DatabaseError, match=GRANTS):
        channels.promote(store, "stable", "c", "mine@c", b"content", "tried")


@pytest.mark.parametrize("role", ["reader", "worker", "publisher"])
def test_no_role_changes_the_schema_or_rewrites_what_was_measured(postgres, database, role):
    url = postgres.url(database, role)
    for table in TABLES:
        assert OWNER in refusal(url, f'DROP TABLE "{table}"')
        assert OWNER in refusal(url, f'ALTER TABLE "{table}" ADD COLUMN remark text')
        assert GRANTS in refusal(url, f'TRUNCATE "{table}"')
    assert OWNER in refusal(url, "CREATE TABLE mine (id int)")
    assert GRANTS in refusal(url, "UPDATE trial SET median_us = 0")
    assert GRANTS in refusal(url, "DELETE FROM job")
    assert GRANTS in refusal(url, "UPDATE history SET median_us = 0")
    assert GRANTS in refusal(url, "UPDATE channel SET reason = ''")
    assert GRANTS in refusal(url, "UPDATE alembic_version SET version_num = '9999'")


def test_a_role_that_may_not_migrate_says_so(postgres, database):
    postgres.execute("UPDATE alembic_version SET version_num = '0002'", database)
    url = postgres.url(database, "worker")
    with pytest.raises(DatabaseError, match="has schema revision 0002, older than"):
        Store.open(url)
    with pytest.raises(DatabaseError, match=OWNER):
        upgrade(url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_a_url_may_name_the_driver(postgres, database, scheme):
    with Store.open(postgres.url(database).replace("postgresql+psycopg", scheme)) as store:
        assert store.records() == [record()]
