"""Records from elsewhere become the database's own: by a stated rule, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa

from autotune.store.entries import Entry, TrialEntry, Wanted, read_entries
from autotune.store.fields import unix_s
from autotune.store.results import close_sweep, learn_device, open_sweep, write_records, write_result
from autotune.store.store import Store
from autotune.values.device import Device
from autotune.values.record import Environment, Record

_Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Merged:
    """What becomes of a record from elsewhere.

    `verdict` is `new`, `same`, `better` (it takes the place of `before`) or `worse` (`before` stays).
    """

    entry: Entry
    verdict: str
    before: Record | None = None

    @property
    def is_taken(self) -> bool:
        """Whether it is stored."""
        return self.verdict in ("new", "better")


def merge(
    store: Store,
    entries: Sequence[Entry],
    attempts: Sequence[TrialEntry],
    arguments: Mapping[str, Any],
    dry_run: bool = False,
) -> list[Merged]:
    """Store those entries, with their binaries and the attempts at their problems, that are new or better.

    Of two records of one device, problem, mode and kernel that is better which has evidence, then the one of
    more rounds, then the newer; among the entries too. All of it is stored in one transaction, or nothing.
    `arguments` are those of the sweeps that the records count as.

    Raises:
        DatabaseError: the store cannot be read or written.
    """
    with store.database.transaction(write=not dry_run) as connection:
        here = {_key(entry): entry.record for entry in read_entries(connection, Wanted())}
        best: dict[Any, Entry] = {}
        for entry in sorted(entries, key=lambda entry: _rank(entry.record)):
            best[_key(entry)] = entry
        beaten = [(entry, best[_key(entry)]) for entry in entries if best[_key(entry)] is not entry]
        merged = [_judged(entry, here.get(key)) for key, entry in best.items()]
        merged += [_judged(entry, winner.record) for entry, winner in beaten]
        if not dry_run:
            _write(connection, [each.entry for each in merged if each.is_taken], attempts, arguments)
    return merged


def _judged(entry: Entry, before: Record | None) -> Merged:
    if before is None:
        return Merged(entry, "new")
    if _same(entry.record, before):
        return Merged(entry, "same", before)
    return Merged(entry, "better" if _rank(entry.record) > _rank(before) else "worse", before)


def _same(one: Record, other: Record) -> bool:
    """Text has times rounded to 1 ns."""

    def told(record: Record) -> tuple[Any, ...]:
        times = (record.median_us, record.low_us, record.high_us, record.default_us)
        has_evidence = record.evidence is not None
        return record.config, record.created_at, has_evidence, tuple(round(us, 3) for us in times)

    return told(one) == told(other)


def _rank(record: Record) -> tuple[Any, ...]:
    evidence = record.evidence
    # What is dated ahead of time was dated by a wrong clock, and is no newer than what is measured now.
    measured_at = min(unix_s(record.created_at), datetime.now(timezone.utc).timestamp())
    return evidence is not None, evidence.rounds if evidence else 0, measured_at


def _write(
    connection: sa.Connection,
    entries: Sequence[Entry],
    attempts: Sequence[TrialEntry],
    arguments: Mapping[str, Any],
) -> None:
    taken = {(entry.device.name, entry.device.arch, entry.record.problem) for entry in entries}
    groups: dict[tuple[Device, str], tuple[Environment, list[Entry], list[TrialEntry]]] = {}

    def group(of: Entry | TrialEntry) -> tuple[Environment, list[Entry], list[TrialEntry]]:
        return groups.setdefault((of.device, of.environment.digest), (of.environment, [], []))

    for entry in entries:
        group(entry)[1].append(entry)
    for attempt in attempts:
        if (attempt.device.name, attempt.device.arch, attempt.trial.problem) in taken:
            group(attempt)[2].append(attempt)
    for (device, _), (environment, its_entries, its_attempts) in groups.items():
        device_id = learn_device(connection, device)
        sweep_id = open_sweep(connection, device_id, environment, arguments)
        write_result(connection, sweep_id, [attempt.trial for attempt in its_attempts], None, None)
        records = [(entry.record, entry.binary) for entry in its_entries]
        write_records(connection, sweep_id, records, "import")
        close_sweep(connection, sweep_id, "finished")


def _key(entry: Entry) -> _Key:
    record = entry.record
    return record.device, record.arch, record.problem, record.mode, record.source_hash
