"""What `autotune db prune` takes away, and what it leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from databases import rows
from store_samples import ENVIRONMENT, H200, LAYER, SOURCES, binary, config, record, trials

from autotune.cli import main
from autotune.store.database import Database
from autotune.store.prune import prune
from autotune.store.queue import Queue
from autotune.store.results import write_result
from autotune.store.store import Store
from autotune.values.job import Worker
from autotune.values.layer import Problem
from autotune.values.record import sources_digest

HERE = (H200.name, H200.arch, sources_digest(SOURCES))
TABLES = ("binary", "job", "record", "trial", "sweep", "environment", "device")


@pytest.fixture
def filled(url: str) -> str:
    """A record with its kernel, one whose kernel was replaced, and jobs in every state."""
    first, second = record(), record(m=2, best=config(16))
    with Store.open(url) as store:
        queue = Queue(store)
        queue.add([(Problem(LAYER, m), 1.0 / m) for m in (1, 2, 4, 8, 16)], *HERE)
        sweep = store.begin_sweep(H200, ENVIRONMENT, {})
        for each, key in ((first, "first"), (second, "old"), (second, "second")):
            store.add_result(sweep, trials(each), each, binary(key))
        queue.complete(queue.claim(*HERE, "me", 60.0), sweep, [], None, None)
        queue.park(queue.claim(*HERE, "me", 60.0), "no luck")
        queue.cancel([3])
        queue.claim(*HERE, "me", 60.0)
        queue.beat(Worker("me", "host", *HERE[:2], "tuning", 1))
    return url


def everything(url: str) -> dict[str, list[dict]]:
    return {table: rows(url, table) for table in TABLES}


def test_what_no_record_needs_goes_and_all_else_stays(filled):
    before = everything(filled)
    with Store.open(filled) as store:
        assert prune(store) == {"kernel": 1, "job": 1, "sample": 6}
        assert [each.job_id for each in Queue(store).workers()] == [None]
        assert prune(store) == {"kernel": 0, "job": 0, "sample": 0}
        expected = [replace(trial, samples_us=()) for trial in trials(record())]
        assert store.trials(record().problem, H200) == expected
    after = everything(filled)
    assert [each["unit_key"] for each in after["binary"]] == ["first", "second"]
    assert [each["state"] for each in after["job"]] == ["parked", "cancelled", "running", "queued"]
    for table in ("record", "sweep", "environment", "device"):
        assert after[table] == before[table]


def test_trials_go_only_when_asked_and_never_those_of_records(filled):
    of_records = {each["trial_id"] for each in rows(filled, "record")}
    with Store.open(filled) as store:
        assert prune(store, trials=True) == {"kernel": 1, "job": 1, "trial": 7, "sample": 2}
        assert len(store.records()) == 2
    assert {each["id"] for each in rows(filled, "trial")} == of_records


@pytest.mark.parametrize("asked", [(), ("--trials",)])
def test_a_dry_run_counts_and_changes_nothing(filled, capsys, asked):
    before = everything(filled)
    assert main(("db", "prune", "--dry-run", "--db", filled, *asked)) == 0
    assert everything(filled) == before
    would = capsys.readouterr().out
    assert main(("db", "prune", "--db", filled, *asked)) == 0
    assert capsys.readouterr().out == would.replace("would remove", "removed")


def test_a_kernel_whose_record_is_being_stored_stays(postgres, template):
    url = postgres.url(postgres.create(template))
    with Store.open(url) as store:
        sweep = store.begin_sweep(H200, ENVIRONMENT, {})
        store.add_result(sweep, [], record(), binary("used"))
        store.add_result(sweep, [], record(), binary("other"))
        writer = Database(url)
        with writer.transaction(write=True) as connection:
            write_result(connection, sweep, [], record(m=2), binary("used"))
            assert prune(store)["kernel"] == 0
        writer.close()
        assert len(store.records()) == 2
    assert {each["unit_key"] for each in rows(url, "binary")} == {"used", "other"}


def test_a_file_gets_smaller(tmp_path):
    path = tmp_path / "large.db"
    with Store.open(path) as store:
        sweep = store.begin_sweep(H200, ENVIRONMENT, {})
        for key in ("old", "new"):
            store.add_result(sweep, [], record(), binary(key, b"\x7fELF" + bytes(1 << 20)))
    before = path.stat().st_size
    with Store.open(path) as store:
        assert prune(store)["kernel"] == 1
    assert before - path.stat().st_size > 1_000_000


def test_a_worker_of_a_fleet_may_not(postgres, template):
    from autotune.values.errors import DatabaseError
    from autotune.values.paths import shipped

    name = postgres.create(template)
    postgres.execute((shipped("migrations") / "roles.sql").read_text(encoding="utf-8"), name)
    postgres.execute("DROP ROLE IF EXISTS pruner")
    postgres.execute("CREATE ROLE pruner LOGIN IN ROLE autotune_worker")
    with Store.open(postgres.url(name, "pruner")) as store:
        with pytest.raises(DatabaseError, match="let its owner grant"):
            prune(store)
        assert prune(store, dry_run=True) == {"kernel": 0, "job": 0, "sample": 0}
