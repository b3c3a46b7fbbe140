"""The queue: problems to tune, each claimed by one worker at a time, in the database of the results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from autotune.store.clock import now
from autotune.store.database import INSERT
from autotune.store.fields import RowError
from autotune.store.results import write_result
from autotune.store.rows import PROBLEM_FIELDS, SIZES, job_of, problem_row, worker_of
from autotune.store.store import Store
from autotune.store.tables import DEVICE, JOB, OPEN, WORKER, with_device
from autotune.values.errors import LeaseLost
from autotune.values.job import Job, Worker
from autotune.values.layer import COARSE, Problem
from autotune.values.record import Binary, Checked, Record, Trial

ATTEMPTS = 3
"""After so many failures a job is parked."""
BACK_OFF_S = 30.0
"""What a job waits after its first failure; four times as long after the next."""
_LOWEST = -1e300
_FORGET_S = 7 * 86_400.0
_KEY = (*PROBLEM_FIELDS, "device_id", "source_hash")
_IDLE: dict[str, Any] = {"lease_until": None, "worker": None}
_FRESH: dict[str, Any] = {"state": "queued", "attempts": 0, "reason": None}


def _device(name: Any, arch: Any) -> sa.ScalarSelect[Any]:
    return sa.select(DEVICE.c.id).where(DEVICE.c.name == name, DEVICE.c.arch == arch).scalar_subquery()


def _claim() -> sa.Executable:
    free = sa.func.coalesce(JOB.c.lease_until, JOB.c.not_before) <= now()
    first = sa.select(JOB.c.id).where(
        JOB.c.device_id == _device(sa.bindparam("its_device"), sa.bindparam("its_arch")),
        JOB.c.source_hash == sa.bindparam("its_sources"),
        OPEN,
        free,
        JOB.c.priority >= sa.bindparam("least"),
    )
    first = first.order_by(JOB.c.priority.desc(), JOB.c.id).limit(1).with_for_update(skip_locked=True)
    vanished = "worker " + JOB.c.worker + " vanished: its lease ended"
    taken = sa.update(JOB).where(JOB.c.id == first.scalar_subquery())
    return taken.values(
        state="running",
        attempts=JOB.c.attempts + 1,
        worker=sa.bindparam("me"),
        lease_until=now() + sa.bindparam("lease_s", type_=sa.Double()),
        reason=sa.case((JOB.c.state == "running", vanished), else_=JOB.c.reason),
    ).returning(JOB)


# Made once: to make it takes longer than to run it.
_CLAIM = _claim()


class Queue:
    """The jobs of a store. A lease's time is the database's: no worker's clock matters.

    Every method raises DatabaseError, in one line, when the database cannot be read or written.
    """

    def __init__(self, store: Store) -> None:
        self._database = store.database

    def add(
        self,
        problems: Iterable[tuple[Problem, float]],
        device: str,
        arch: str,
        source_hash: str,
        again: bool = False,
    ) -> int:
        """Queue problems with their priority, the highest first; how many are new.

        A problem is queued once for a device model and kernel sources. One that waits already gets the
        higher of both priorities; one that runs, is done, parked or cancelled stays so until `retry`. With
        `again` what is done is queued anew, and counts as new.
        """
        highest: dict[Problem, float] = {}
        for problem, priority in problems:
            highest[problem] = max(priority, highest.get(problem, priority))
        # Sorted, so that two processes which add the same problems wait for each other in one order only; and
        # finer buckets last, because they learn from the coarse ones.
        order = sorted(highest, key=lambda problem: (problem.m not in COARSE, problem))
        if not order:
            return 0
        with self._database.transaction(write=True) as connection:
            common = {"device_id": _known(connection, device, arch), "source_hash": source_hash}
            rows = [problem_row(each) | common | {"priority": highest[each]} for each in order]
            insert = INSERT[connection.dialect.name](JOB)
            fresh = insert.values(state="queued", attempts=0, not_before=now(), created_at=now())
            stored = fresh.on_conflict_do_nothing(index_elements=_KEY).returning(JOB.c.id)
            new = len(connection.execute(stored, rows).all())
            if new < len(rows):
                same = [JOB.c[name] == sa.bindparam(f"its_{name}") for name in _KEY]
                lower = JOB.c.priority < sa.bindparam("higher")
                raised = sa.update(JOB).where(*same, JOB.c.state == "queued", lower)
                renamed = [{f"its_{name}": row[name] for name in _KEY} for row in rows]
                higher = [old | {"higher": row["priority"]} for old, row in zip(renamed, rows, strict=True)]
                connection.execute(raised.values(priority=sa.bindparam("higher")), higher)
                if again:
                    anew = (
                        sa.update(JOB)
                        .where(*same, JOB.c.state == "done")
                        .values(**_IDLE, **_FRESH, not_before=now(), priority=sa.bindparam("higher"))
                    )
                    new += connection.execute(anew, higher).rowcount
        return new

    def claim(
        self,
        device: str,
        arch: str,
        source_hash: str,
        worker: str,
        lease_s: float,
        least: float = float("-inf"),
    ) -> Job | None:
        """The next job of the device model, leased to the worker; None when there is nothing to do now.

        The one of the highest priority, of those the oldest; none of a priority below `least`. A job whose
        lease has ended counts as a failed attempt and is claimed again; after its last attempt it is parked.
        So is a job whose row does not read, or it would stop every job behind it.
        """
        mine = {"its_device": device, "its_arch": arch, "its_sources": source_hash}
        given = {**mine, "me": worker, "lease_s": lease_s, "least": max(least, _LOWEST)}
        with self._database.transaction(write=True) as connection:
            while row := connection.execute(_CLAIM, given).mappings().one_or_none():
                parked = sa.update(JOB).where(JOB.c.id == row["id"]).values(**_IDLE, state="parked")
                try:
                    job = job_of({**row, "device": device, "arch": arch})
                except RowError as error:
                    connection.execute(parked.values(reason=str(error)))
                    continue
                if job.attempts <= ATTEMPTS:
                    return job
                connection.execute(parked.values(attempts=ATTEMPTS))
        return None

    def renew(self, job: Job, lease_s: float) -> bool:
        """Let the lease end `lease_s` from now; False when it is lost: claimed by another, or cancelled."""
        return self._change(job, lease_until=now() + lease_s)

    def complete(
        self,
        job: Job,
        sweep_id: int,
        trials: Sequence[Trial],
        record: Record | None,
        binary: Binary | None,
        dropped: Sequence[Record] = (),
        checked: Checked | None = None,
    ) -> None:
        """Store what was found out, as `Store.add_result`, and mark the job done: both, or neither.

        It may be called again when the database failed, and stores nothing twice.

        Raises:
            LeaseLost: the job is no longer the worker's; nothing is stored.
        """
        with self._database.transaction(write=True) as connection:
            done = _held(job).values(state="done", lease_until=None, reason=None)
            if connection.execute(done).rowcount:
                write_result(connection, sweep_id, trials, record, binary, dropped, checked)
                return
            stored = _its(sa.select(JOB.c.id), job).where(JOB.c.state == "done")
            if connection.scalar(stored) is None:
                raise LeaseLost(
                    f"job {job.id} ({job.problem}) is no longer at worker {job.worker}, so its result "
                    "is discarded; see: autotune jobs"
                )

    def fail(self, job: Job, reason: str, sweep_id: int | None = None, trials: Sequence[Trial] = ()) -> str:
        """Queue the job again after a while, or park it after its last attempt; its state then.

        Stores what was tried along with it. A job whose lease was lost stays as it is.
        """
        if job.attempts >= ATTEMPTS:
            failed = _held(job).values(**_IDLE, state="parked", reason=reason)
        else:
            wait_s = BACK_OFF_S * 4.0 ** (job.attempts - 1)
            failed = _held(job).values(**_IDLE, state="queued", reason=reason, not_before=now() + wait_s)
        with self._database.transaction(write=True) as connection:
            if connection.execute(failed).rowcount and sweep_id is not None:
                write_result(connection, sweep_id, trials, None, None)
            state: str = connection.execute(sa.select(JOB.c.state).filter_by(id=job.id)).scalar_one()
        return state

    def park(self, job: Job, reason: str) -> bool:
        """Give the job up at once, because trying again will not help; False when its lease was lost."""
        return self._change(job, **_IDLE, state="parked", reason=reason)

    def give_back(self, job: Job) -> None:
        """Queue the job again at once, as if it had not been claimed."""
        self._change(job, **_IDLE, state="queued", attempts=job.attempts - 1)

    def retry(self, ids: Sequence[int] | None = None) -> int:
        """Queue jobs afresh, whatever became of them unless they run; None: every parked one. How many."""
        which = JOB.c.state == "parked" if ids is None else JOB.c.id.in_(ids) & (JOB.c.state != "running")
        fresh = sa.update(JOB).where(which).values(**_IDLE, **_FRESH)
        return self._write(fresh.values(not_before=now()))

    def cancel(self, ids: Sequence[int]) -> int:
        """Call off jobs that are not done; workers notice it when they renew. How many."""
        which = JOB.c.id.in_(ids) & JOB.c.state.in_(("queued", "running", "parked"))
        return self._write(sa.update(JOB).where(which).values(**_IDLE, state="cancelled"))

    def jobs(
        self, state: str | None = None, device: str | None = None, limit: int | None = None
    ) -> list[Job]:
        """Jobs of the state and device model, or all, in the order in which they are or were claimed."""
        query = with_device(JOB).order_by(JOB.c.priority.desc(), JOB.c.id).limit(limit)
        for column, value in ((JOB.c.state, state), (DEVICE.c.name, device)):
            query = query if value is None else query.where(column == value)
        with self._database.transaction() as connection:
            return [job_of(row) for row in connection.execute(query).mappings()]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state that any job is in."""
        query = sa.select(JOB.c.state, sa.func.count()).group_by(JOB.c.state)
        with self._database.transaction() as connection:
            return {str(row[0]): int(row[1]) for row in connection.execute(query)}

    def beat(self, worker: Worker) -> None:
        """Say that the worker lives and what it does. Workers not seen for a week are forgotten."""
        said = asdict(worker) | {"last_seen": now()}
        # A job that is done may be gone.
        said["job_id"] = sa.select(JOB.c.id).where(JOB.c.id == worker.job_id).scalar_subquery()
        with self._database.transaction(write=True) as connection:
            said["device_id"] = _known(connection, said.pop("device"), said.pop("arch"))
            connection.execute(sa.delete(WORKER).where(WORKER.c.last_seen < now() - _FORGET_S))
            insert = INSERT[connection.dialect.name](WORKER).values(said | {"started_at": now()})
            del said["started_at"]
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=said))

    def workers(self) -> list[Worker]:
        """Every worker of the last week, by name."""
        with self._database.transaction() as connection:
            rows = connection.execute(with_device(WORKER).order_by(WORKER.c.name)).mappings()
            return [worker_of(row) for row in rows]

    def clock(self) -> float:
        """The database's time in Unix seconds, to compare the times of jobs and workers with."""
        with self._database.transaction() as connection:
            return connection.execute(sa.select(now())).scalar_one()

    def _change(self, job: Job, **values: Any) -> bool:
        return self._write(_held(job).values(values)) == 1

    def _write(self, update: sa.Update) -> int:
        with self._database.transaction(write=True) as connection:
            return connection.execute(update).rowcount


def _known(connection: sa.Connection, name: str, arch: str) -> int:
    """The device model's id; one on which nobody measured yet becomes known by its name, without sizes."""
    key = {"name": name, "arch": arch}
    row = {**key, "kind": "cuda" if arch.startswith("sm_") else "cpu", **dict.fromkeys(SIZES, 0)}
    found: int | None = connection.scalar(sa.select(_device(name, arch)))
    if found is None:
        insert = INSERT[connection.dialect.name](DEVICE).values(row)
        connection.execute(insert.on_conflict_do_nothing(index_elements=list(key)))
        found = connection.scalar(sa.select(_device(name, arch)))
    assert found is not None
    return found


def _its(statement: Any, job: Job) -> Any:
    # A claim counts an attempt, so no two claims of a job have worker and attempts in common.
    return statement.where(JOB.c.id == job.id, JOB.c.worker == job.worker, JOB.c.attempts == job.attempts)


def _held(job: Job) -> sa.Update:
    """An update of the job, of no row when its lease was lost."""
    update: sa.Update = _its(sa.update(JOB), job).where(JOB.c.state == "running")
    return update
