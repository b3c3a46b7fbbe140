"""Takes out of a database what nothing reads any more."""

from __future__ import annotations

import sqlalchemy as sa

from autotune.store.store import Store
from autotune.store.tables import BINARY, JOB, PULLED, RECORD, TRIAL


def prune(store: Store, trials: bool = False, dry_run: bool = False) -> dict[str, int]:
    """Take out the binaries of no record, jobs that are done, and the samples of trials; how many of each.

    With `trials` those that no record is of go too, and the next sweep measures their configs again. All of
    it goes, or nothing on any failure; other processes may use the database meanwhile. A SQLite file gets
    smaller.

    Raises:
        DatabaseError: the database cannot be written, or the role may not delete.
    """
    used = (sa.select(table.c.binary_id).where(table.c.binary_id.is_not(None)) for table in (RECORD, PULLED))
    unused = sa.and_(*(BINARY.c.id.not_in(each) for each in used))
    # One that is being stored with its record right now is locked, and stays.
    free = sa.select(BINARY.c.id).where(unused).with_for_update(skip_locked=True)
    done = JOB.c.state == "done"
    loose = TRIAL.c.id.not_in(sa.select(RECORD.c.trial_id).where(RECORD.c.trial_id.is_not(None)))
    sampled = sa.and_(sa.func.length(TRIAL.c.samples) > 0, *([~loose] if trials else []))
    steps: dict[str, tuple[sa.Table, sa.ColumnElement[bool], sa.Delete | sa.Update]] = {
        "kernel": (BINARY, unused, sa.delete(BINARY).where(BINARY.c.id.in_(free))),
        "job": (JOB, done, sa.delete(JOB).where(done)),
        "trial": (TRIAL, loose, sa.delete(TRIAL).where(loose)),
        "sample": (TRIAL, sampled, sa.update(TRIAL).where(sampled).values(samples=b"")),
    }
    if not trials:
        del steps["trial"]
    with store.database.transaction(write=not dry_run) as connection:
        if dry_run:
            counts = {
                name: sa.select(sa.func.count()).select_from(table).where(which)
                for name, (table, which, _) in steps.items()
            }
            return {name: connection.execute(count).scalar_one() for name, count in counts.items()}
        pruned = {name: connection.execute(change).rowcount for name, (_, _, change) in steps.items()}
    if any(pruned.values()):
        store.database.shrink()
    return pruned
