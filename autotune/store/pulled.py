"""What a host pulled, beside what was measured here: in sets, of which the last ones can be undone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import sqlalchemy as sa

from autotune.store.clock import now
from autotune.store.database import INSERT, put
from autotune.store.entries import Entry
from autotune.store.results import learn_device, put_environment
from autotune.store.rows import problem_row, pulled_of, record_row
from autotune.store.store import Store
from autotune.store.tables import BINARY, ORIGIN, PULLED, PULLED_SET
from autotune.values.errors import DatabaseError
from autotune.values.fleet import Pulled
from autotune.values.record import Binary

_Value = TypeVar("_Value")

KEPT_SETS = 8
"""So many sets can be undone or named; what only older ones had is deleted."""


def version_of(entry: Entry) -> str:
    """Names the record and its kernel: what differs in anything but its evidence has another."""
    record = entry.record
    times = (record.median_us, record.low_us, record.high_us, record.default_us)
    told = {
        **problem_row(record.problem),
        "which": (record.device, record.arch, record.mode, record.source_hash, str(record.config)),
        "times": [round(us, 3) for us in times],
        "created_at": record.created_at,
        "environment": entry.environment.digest,
    }
    if entry.binary is not None:
        told["binary"] = entry.binary.sha256
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def versions(store: Store, origin: str) -> set[str]:
    """Of the origin's records that are in force.

    Raises:
        DatabaseError: the store cannot be read.
    """
    query = sa.select(PULLED.c.version).join(ORIGIN).where(ORIGIN.c.name == origin, PULLED.c.until.is_(None))
    with store.database.transaction() as connection:
        return set(connection.scalars(query))


def sets(store: Store) -> list[Pulled]:
    """The sets that are kept, the newest first.

    Raises:
        DatabaseError: the store cannot be read.
    """
    with store.database.transaction() as connection:
        return _sets(connection)


def count_in_force(store: Store) -> int:
    """How many pulled records are in force, of all origins.

    Raises:
        DatabaseError: the store cannot be read.
    """
    query = sa.select(sa.func.count()).select_from(PULLED).where(PULLED.c.until.is_(None))
    with store.database.transaction() as connection:
        return int(connection.execute(query).scalar_one())


def last_digest(store: Store, origin: str) -> str | None:
    """Of what was last pulled from there, be it in force or undone.

    Raises:
        DatabaseError: the store cannot be read.
    """
    with store.database.transaction() as connection:
        return connection.scalar(sa.select(ORIGIN.c.digest).where(ORIGIN.c.name == origin))


def apply(
    store: Store,
    origin: str,
    offered: Collection[str],
    new: Sequence[Entry],
    bundle: str | None = None,
    signer: str | None = None,
) -> Pulled | None:
    """Have the origin's records be those of the versions `offered`, of which `new` are not here yet.

    In one transaction, beside readers and other writers. Binaries of entries are stored where the unit has
    none. Returns the new set, None when nothing changed.

    Raises:
        DatabaseError: the store cannot be written, or what is here changed meanwhile.
    """
    with store.database.transaction(write=True) as connection:
        origin_id = put(connection, ORIGIN, {"name": origin}, {"digest": digest_of(offered)})
        here = _in_force(connection, origin_id)
        gone = [here[version] for version in here.keys() - set(offered)]
        fresh = {version_of(entry): entry for entry in new}
        fresh = {version: entry for version, entry in fresh.items() if version not in here}
        if not here.keys() | fresh.keys() >= set(offered):
            raise DatabaseError(f"{store.name}: what is pulled changed while it was read; pull again")
        if not fresh and not gone:
            return None
        row = {"origin_id": origin_id, "bundle": bundle, "signer": signer, "rolled_back": False}
        inserted: Any = connection.execute(
            sa.insert(PULLED_SET).values(**row, name="", pulled_at=now())
        ).inserted_primary_key
        set_id = int(inserted[0])
        _end(connection, gone, set_id)
        _write(connection, origin_id, set_id, fresh)
        name = _name(connection)
        connection.execute(sa.update(PULLED_SET).where(PULLED_SET.c.id == set_id).values(name=name))
        _forget(connection)
    return next(each for each in sets(store) if each.id == set_id)


def roll_back(store: Store) -> tuple[Pulled, Pulled | None]:
    """Undo the newest set that is in force; that set, and the one that is in force now, None for none.

    Raises:
        DatabaseError: there is none, or the store cannot be written.
    """
    with store.database.transaction(write=True) as connection:
        newest = _newest(connection)
        if newest is None or newest.id < _oldest_kept(connection):
            raise DatabaseError(f"{store.name} keeps no pulled set to undo; autotune pull gets one")
        connection.execute(sa.delete(PULLED).where(PULLED.c.since == newest.id))
        connection.execute(sa.update(PULLED).where(PULLED.c.until == newest.id).values(until=None))
        undone = sa.update(PULLED_SET).where(PULLED_SET.c.id == newest.id).values(rolled_back=True)
        connection.execute(undone)
        return replace(newest, rolled_back=True), _newest(connection)


def _sets(connection: sa.Connection) -> list[Pulled]:
    query = sa.select(PULLED_SET, ORIGIN.c.name.label("origin")).join(ORIGIN).order_by(PULLED_SET.c.id.desc())
    return [pulled_of(row) for row in connection.execute(query.limit(2 * KEPT_SETS)).mappings()]


def _newest(connection: sa.Connection) -> Pulled | None:
    """The newest set that is in force."""
    return next((each for each in _sets(connection) if not each.rolled_back), None)


def digest_of(versions: Iterable[str]) -> str:
    """The hash of a set of versions."""
    return hashlib.sha256("".join(sorted(versions)).encode()).hexdigest()


def _in_force(connection: sa.Connection, origin_id: int) -> dict[str, int]:
    query = sa.select(PULLED.c.version, PULLED.c.id)
    query = query.where(PULLED.c.origin_id == origin_id, PULLED.c.until.is_(None))
    return {row.version: row.id for row in connection.execute(query)}


def _end(connection: sa.Connection, ids: Sequence[int], set_id: int) -> None:
    if ids:
        ended = sa.update(PULLED).where(PULLED.c.id == sa.bindparam("which")).values(until=set_id)
        connection.execute(ended, [{"which": each} for each in ids])


def _write(connection: sa.Connection, origin_id: int, set_id: int, fresh: dict[str, Entry]) -> None:
    device_id = _once(lambda entry: learn_device(connection, entry.device), lambda entry: str(entry.device))
    environment_id = _once(
        lambda entry: put_environment(connection, entry.environment), lambda entry: entry.environment.digest
    )
    binary_id = _once(
        lambda entry: _learn_binary(connection, entry.binary),
        lambda entry: "" if entry.binary is None else entry.binary.unit_key,
    )
    rows = [
        record_row(entry.record)
        | {"origin_id": origin_id, "since": set_id, "version": version}
        | {"device_id": device_id(entry), "environment_id": environment_id(entry)}
        | {"binary_id": binary_id(entry)}
        for version, entry in fresh.items()
    ]
    if rows:
        connection.execute(sa.insert(PULLED), rows)


def _learn_binary(connection: sa.Connection, binary: Binary | None) -> int | None:
    """The id of the unit's kernel; one that was compiled here stays."""
    if binary is None:
        return None
    names = ("unit_key", "sha256", "arch", "compiler", "cubin")
    row = {name: getattr(binary, name) for name in names}
    insert = INSERT[connection.dialect.name](BINARY).values(row)
    connection.execute(insert.on_conflict_do_nothing(index_elements=["unit_key"]))
    found: int = connection.execute(sa.select(BINARY.c.id).filter_by(unit_key=binary.unit_key)).scalar_one()
    return found


def _once(make: Callable[[Entry], _Value], key: Callable[[Entry], str]) -> Callable[[Entry], _Value]:
    """`make`, called once for each key."""
    known: dict[str, _Value] = {}

    def made(entry: Entry) -> _Value:
        if key(entry) not in known:
            known[key(entry)] = make(entry)
        return known[key(entry)]

    return made


def _name(connection: sa.Connection) -> str:
    """Of all that is in force, the same wherever that is."""
    found = connection.scalars(sa.select(PULLED.c.version).where(PULLED.c.until.is_(None)))
    return digest_of(found)[:16]


def _forget(connection: sa.Connection) -> None:
    """Delete what only sets before the last KEPT_SETS had, and those sets."""
    oldest = _oldest_kept(connection)
    connection.execute(sa.delete(PULLED).where(PULLED.c.until < oldest))
    # A row that is still in force keeps the set that brought it.
    used = sa.select(PULLED.c.since)
    old = sa.delete(PULLED_SET).where(PULLED_SET.c.id < oldest, PULLED_SET.c.id.not_in(used))
    connection.execute(old)


def _oldest_kept(connection: sa.Connection) -> int:
    kept = sa.select(PULLED_SET.c.id).order_by(PULLED_SET.c.id.desc()).limit(KEPT_SETS)
    return int(min(connection.scalars(kept)))
