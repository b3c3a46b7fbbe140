"""Several processes on one database: writers at once, and a writer killed half way."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from databases import query, rows
from places import ROOT, SUPPORT
from store_samples import H200, LAYER, record

from autotune.store.reading import user_records
from autotune.store.store import Store

START = f"""
import os, signal, sys
sys.path[:0] = [{str(SUPPORT)!r}, {str(ROOT)!r}]
import sqlalchemy as sa
from store_samples import *
from autotune.store.store import Store
"""

WRITER = (
    START
    + """
database, me, results = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.stdin.readline()
with Store.open(database) as store:
    sweep = store.begin_sweep(H200, ENVIRONMENT, {"writer": me})
    for m in range(1, results + 1):
        mine = record(m=m, best=config(tile_m=me), at=me)
        store.add_result(sweep, trials(mine), mine, binary(f"{me}/{m}", os.urandom(100_000)))
    store.finish_sweep(sweep, "finished")
"""
)

KILLED = (
    START
    + """
database, instant = sys.argv[1:]
with Store.open(database) as store:
    sweep = store.begin_sweep(H200, ENVIRONMENT, {})
    store.add_result(sweep, trials(record(m=1)), record(m=1), binary("first", b"1" * 1_000_000))
    if instant == "commit":
        sa.event.listen(sa.Engine, "commit", lambda connection: os.kill(os.getpid(), signal.SIGKILL))
    else:
        def kill(connection, cursor, statement, *rest):
            if statement.replace('"', "").startswith(f"INSERT INTO {instant} "):
                os.kill(os.getpid(), signal.SIGKILL)
        sa.event.listen(sa.Engine, "after_cursor_execute", kill)
    store.add_result(sweep, trials(record(m=2)), record(m=2), binary("second", b"2" * 1_000_000))
"""
)

OPENER = (
    START
    + """
from autotune.store.database import Database
for line in sys.stdin:
    database = Database(line.strip())
    with database.transaction(write=True) as connection:
        connection.execute(sa.text("CREATE TABLE IF NOT EXISTS first (id INTEGER)"))
    database.close()
    print("opened", flush=True)
"""
)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    piped = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, **piped, text=True)


def test_writers_that_create_one_database_at_once_lose_nothing(empty_url):
    results = 20
    writers = [start(WRITER, empty_url, me, results) for me in (1, 2, 3)]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    with Store.open(empty_url) as store:
        found = store.records()
        assert [each.problem.m for each in found] == list(range(1, results + 1))
        for each in found:
            assert len(store.trials(each.problem, H200)) == 3 * len(writers)
    assert len({each["sha256"] for each in rows(empty_url, "binary")}) == 3 * results
    assert [each["status"] for each in rows(empty_url, "sweep")] == ["finished"] * 3
    assert len(rows(empty_url, "device")) == 1


def test_processes_that_first_open_one_file_at_once_wait_for_each_other(tmp_path):
    openers = [start(OPENER) for _ in range(3)]
    for number in range(60):
        for opener in openers:
            opener.stdin.write(f"{tmp_path / str(number)}\n")
            opener.stdin.flush()
        if [opener.stdout.readline() for opener in openers] != ["opened\n"] * 3:
            break
    assert [opener.communicate()[1] for opener in openers] == [""] * 3


@pytest.mark.parametrize("instant", ["trial", "binary", "record", "commit"])
def test_a_killed_writer_leaves_all_of_a_result_or_nothing(empty_url, instant):
    writer = start(KILLED, empty_url, instant)
    _, errors = writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL, errors
    first = record(m=1)
    with Store.open(empty_url) as store:
        assert store.records(H200) == [first]
        assert store.trials(record(m=2).problem, H200) == []
        sweep = store.begin_sweep(H200, store.environment(H200), {})
        store.add_result(sweep, [], record(m=2), None)
    assert [each["unit_key"] for each in rows(empty_url, "binary")] == ["first"]
    if "://" not in empty_url:
        assert user_records(Path(empty_url), H200, LAYER) == ([first, record(m=2)], [])
        assert query(empty_url, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        assert query(empty_url, "PRAGMA foreign_key_check") == []
