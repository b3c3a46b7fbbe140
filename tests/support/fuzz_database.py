"""Databases damaged at random: no model load and no verb may break, and what is whole must still answer.

    python tests/support/fuzz_database.py SEED SECONDS

Each case has a seed of its own, which a failure names; with 0 seconds only the case of SEED is run.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import random
import sqlite3
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from real_families import CPU_FAMILY, GPU_FAMILY
from runtime_tools import AwqLinear, weight_of
from store_samples import EVIDENCE
from torch import nn

from autotune.bundles.pull import pull
from autotune.cli import main
from autotune.families import registry
from autotune.models.apply import apply
from autotune.records.lookup import Lookup
from autotune.records.misses import miss_file, read
from autotune.search.environment import current_environment
from autotune.search.incremental import candidates_to_do
from autotune.store.channels import promote
from autotune.store.entries import Wanted
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.device import cpu_device
from autotune.values.errors import AutotuneError
from autotune.values.job import Worker
from autotune.values.layer import Layer, Problem
from autotune.values.record import DEFAULT_MODE, Binary, Record, Trial, sources_digest

WATCHDOG_S = 300
"""A case takes a fraction of a second; one that takes this long has no end, and ends the process."""
CPU = cpu_device()
OTHER = replace(CPU, name="another CPU")
LAYERS = (
    Layer(64, 128, group_size=64),
    Layer(128, 128, group_size=64),
    Layer(64, 256, group_size=64),
    Layer(64, 128, group_size=64, dtype="fp32"),
)
GOOD = Problem(LAYERS[0], 4)
"""The problem whose record is left whole where only rows are damaged."""
SOURCES = ("exact", "shipped", "predicted", "default")
MODEL = nn.Sequential(AwqLinear(weight_of(LAYERS[0])))

VERBS = (
    ("doctor",),
    ("lookup", "--shapes", str(LAYERS[0]), "--device", "cpu", "--explain"),
    ("lookup", "--shapes", str(LAYERS[0]), "--device", "cpu", "--explain", "--json"),
    ("jobs",),
    ("jobs", "list", "--json"),
    ("jobs", "add", "--shapes", str(LAYERS[1]), "--device", "cpu"),
    ("jobs", "retry", "--parked"),
    ("jobs", "cancel", "1"),
    ("devices",),
    ("devices", "--json"),
    ("export", "records", "--samples"),
    ("db", "upgrade"),
    ("history",),
    ("history", "--json"),
    ("history", "--channel", "stable"),
    ("bundle", "create", "mine", "--binaries", "--samples", "--folder", "records"),
    ("rollback",),
    ("rollback", "--channel", "stable"),
)

TEXTS = ("", "x", "'", "\x1b[2J", "\U0001f525" * 40, "0", "-1", "1e999", "nan", "9" * 5000, "[" * 100_000)
MORE_TEXTS = (
    "{}",
    "null",
    '{"gain": 7}',
    f"{CPU_FAMILY.name}:",
    f"{CPU_FAMILY.name}:tile_m=0",
    f"{GPU_FAMILY.name}:split_k={10**20 - 1}",
    "\n\n",
)
BYTES = (b"", b"\x00", b"\xff\xfe\x00text", b"\x80" * 300, bytes(3 << 20))
NUMBERS = (None, 0, 1, -1, 3, 4096, 2**31, -(2**63), 2**63 - 1, 0.5, -1.0, 1e300, float("inf"), -float("inf"))


def whole_database() -> bytes:
    """Records of three layers and two devices, their trials and kernels, jobs and workers.

    Its columns may be NULL, as those of a file may be that no SQLite wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "whole.db")
        with Store.open(path) as store:
            _fill(store)
            with Store.open(Path(folder, "central.db")) as central:
                _fill(central)
            for channel in ("stable", "stable", "candidate"):
                promote(store, channel, "digest", "mine@digest", b"content", "tried")
            pull(store, str(Path(folder, "central.db")), Wanted())
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA writable_schema=ON")
            connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
            connection.commit()
        return path.read_bytes()


def _fill(store: Store) -> None:
    environment = current_environment(CPU)
    for device in (CPU, OTHER):
        sweep = store.begin_sweep(device, environment, {"made": "up"})
        for layer in LAYERS:
            for m in (1, 4, 16):
                record = _record(Problem(layer, m), device.name)
                trial = Trial(
                    record.problem, record.config, "ok", 5.0, 4.5, 5.5, (5.0, 5.5), mode=DEFAULT_MODE
                )
                cubin = Binary(f"unit {layer} {m}", "sm_90", "none", b"\x7fELF" + bytes(50))
                store.add_result(sweep, [trial, replace(trial, status="failed", error="no")], record, cubin)
        store.finish_sweep(sweep, "finished")
    queue, sources = Queue(store), sources_digest(environment.sources)
    queue.add([(Problem(LAYERS[0], m), float(m)) for m in (1, 2, 8, 32)], CPU.name, CPU.arch, sources)
    queue.claim(CPU.name, CPU.arch, sources, "worker", 600.0)
    queue.beat(Worker("worker", "host", CPU.name, CPU.arch, "tuning", 1))


def _record(problem: Problem, device: str) -> Record:
    config = registry.default_config(problem, CPU)
    source_hash = registry.family_of(config).source_hash()
    times = (5.0, 4.5, 5.5, config, 6.0)
    return Record(
        problem, device, CPU.arch, config, *times, source_hash, "2026-01-01T00:00:00+00:00", evidence=EVIDENCE
    )


def damage_bytes(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 4, 64))):
        at, length = rng.randrange(len(content)), rng.choice((1, 1, 8, 500, 4096))
        content[at : at + length] = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))
    path.write_bytes(content)


def truncate(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.choice((rng.randrange(len(content)), 4096 * rng.randrange(1, 20)))])


def damage_rows(rng: random.Random, path: Path) -> None:
    """Any value into any column of some rows, except the good record, its device and the revision."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for _ in range(rng.choice((1, 2, 6))):
            _damage_rows(rng, connection, rng.choice(sorted({*tables} - {"alembic_version"})))


def _damage_rows(rng: random.Random, connection: sqlite3.Connection, table: str) -> None:
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    rows = [
        row[0]
        for row in connection.execute(f"SELECT rowid FROM {table}")
        if row[0] not in _kept(connection, table)
    ]
    column, value = rng.choice(columns), _any_value(rng)
    shown = "CAST(? AS TEXT)" if isinstance(value, bytes) and rng.random() < 0.7 else "?"
    some = rng.sample(rows, rng.randint(0, len(rows)))
    which = ",".join(map(str, some))
    with contextlib.suppress(sqlite3.IntegrityError):
        connection.execute(
            f"UPDATE OR IGNORE {table} SET {column} = {shown} WHERE rowid IN ({which})", (value,)
        )


def _kept(connection: sqlite3.Connection, table: str) -> set[int]:
    if table == "device":
        query, values = "SELECT id FROM device WHERE name = ?", (CPU.name,)
    elif table == "record":
        layer = GOOD.layer
        query = "SELECT id FROM record WHERE (n, k, scheme, m) = (?, ?, ?, ?)"
        values = (layer.n, layer.k, str(layer.scheme), GOOD.m)
    else:
        return set()
    return {row[0] for row in connection.execute(query, values)}


def _any_value(rng: random.Random) -> Any:
    return rng.choice(rng.choice((TEXTS, MORE_TEXTS, BYTES, NUMBERS)))


def damage_schema(rng: random.Random, path: Path) -> None:
    """A table that is gone, or is a view without an end, or a name that is no text."""
    endless = "WITH RECURSIVE x(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM x) SELECT i AS id, i AS n FROM x"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = rng.choice(tables)
        connection.execute("PRAGMA writable_schema=ON")
        change = rng.choice(
            (
                f"DROP TABLE {table}",
                f"DROP TABLE {table}; CREATE VIEW {table} AS {endless}",
                f"UPDATE sqlite_master SET sql = CAST(x'ff28ff' AS TEXT) WHERE name = '{table}'",
                f"UPDATE sqlite_master SET sql = replace(sql, 'config', 'konfig') WHERE name = '{table}'",
                f"UPDATE alembic_version SET version_num = CAST(x'{rng.randbytes(3).hex()}' AS TEXT)",
                "DELETE FROM alembic_version",
            )
        )
        connection.executescript(change)


DAMAGES: tuple[Callable[[random.Random, Path], None], ...] = (
    damage_bytes,
    truncate,
    damage_rows,
    damage_rows,
    damage_rows,
    damage_schema,
)


def check_runtime(path: Path, good: bool) -> None:
    """Every answer is one that can run; the good record's problem is answered by it, where it is whole."""
    lookup = Lookup(CPU, path)
    for layer in (*LAYERS, Layer(192, 128, group_size=64)):
        for m in (1, 4, 7, 64):
            answer = lookup.answer(Problem(layer, m))
            assert answer.source in SOURCES
            bucket = Problem(layer, min(bucket for bucket in (1, 4, 8, 64) if bucket >= m))
            assert registry.family_of(answer.config).reject(answer.config, bucket, CPU) is None
            lookup.explain(answer)
        lookup.binary(f"unit {layer} 1")
    if good:
        assert lookup.answer(GOOD).source == "exact"
    report = apply(nn.Sequential(*MODEL), db=path)
    assert report.applied == ("0",)


def check_verb(rng: random.Random, path: Path) -> None:
    """A verb ends well, or with an error in one line; anything else is raised out of `main`."""
    verb = [str(path.with_name(each)) if each == "records" else each for each in rng.choice(VERBS)]
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        code = main([*verb, "--db", str(path)])
    errors = [line for line in told.getvalue().splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) in ((0, 0), (1, 1)), (verb, code, told.getvalue())


def check_service(path: Path) -> None:
    """What a sweep and a daemon ask before they measure."""
    environment = current_environment(CPU)
    with contextlib.suppress(AutotuneError), Store.open(path) as store:
        queue = Queue(store)
        for ask in (
            lambda: candidates_to_do(GOOD, CPU, store, environment, DEFAULT_MODE),
            lambda: queue.claim(CPU.name, CPU.arch, sources_digest(environment.sources), "me", 1.0),
            lambda: queue.beat(Worker("me", "host", CPU.name, CPU.arch, "idle")),
            queue.counts,
        ):
            with contextlib.suppress(AutotuneError):
                ask()


def check_notes(rng: random.Random, path: Path) -> None:
    """What models noted beside the database, damaged too."""
    notes = miss_file(path)
    if notes.exists():
        damage_bytes(rng, notes)
        list(read(notes))


def run_case(seed: int, whole: bytes) -> None:
    """One database, damaged as the seed says, under everything that reads it."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "damaged.db")
        path.write_bytes(whole)
        damage = rng.choice(DAMAGES)
        damage(rng, path)
        faulthandler.dump_traceback_later(WATCHDOG_S, exit=True)
        try:
            check_runtime(path, good=damage is damage_rows)
            check_verb(rng, path)
            check_service(path)
            check_verb(rng, path)
            check_notes(rng, path)
        except BaseException:
            print(f"seed {seed}, {damage.__name__}", file=sys.stderr)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()


def fuzz(seed: int, seconds: float) -> int:
    """Cases from the seed on, for so many seconds; how many."""
    end, whole, first = time.monotonic() + seconds, whole_database(), seed
    run_case(seed, whole)
    while time.monotonic() < end:
        seed += 1
        run_case(seed, whole)
    return seed - first + 1


if __name__ == "__main__":
    print(f"{fuzz(int(sys.argv[1]), float(sys.argv[2]))} cases")
