"""Serves one device: claims a job, has it tuned, stores the result, again and again."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence

from autotune.daemon.budget import Allowance, TuningHours
from autotune.daemon.events import say
from autotune.daemon.link import Link, is_final, shortage
from autotune.daemon.settings import Settings
from autotune.daemon.stop import Stop
from autotune.daemon.tally import LoopState
from autotune.daemon.tuner import Dropped, JobPlan, Result, Tuner
from autotune.daemon.turn import Turn
from autotune.search.demand import queue_misses, queue_stale, queue_unverified
from autotune.search.executor import Executor
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.errors import AutotuneError, CompileError, DatabaseError, DeviceError, LeaseLost
from autotune.values.job import Job, Worker
from autotune.values.record import DEFAULT_MODE, Checked, Trial, sources_digest

_FIRST_REST_S = 10.0
_MOST_REST_S = 600.0
_LOST = "it was cancelled, or its lease ended and another worker has it; what was measured is discarded"
_LOG = logging.getLogger(__name__)


class _DeviceTrouble(DeviceError):  # noqa: N818, it reads as what it is
    """A device or compiler that cannot be used at all, whatever the job."""


class Serving:
    """One device's loop, in a thread of its own; another thread keeps its lease and says what it does.

    `name` is the worker's; with a `turn` the loop waits for it before it claims a job.
    """

    def __init__(
        self, name: str, executor: Executor, turn: Turn | None, link: Link, settings: Settings, stop: Stop
    ) -> None:
        self.name = name
        self._device = executor.device
        self._link, self._settings, self._stop = link, settings, stop
        self._tuner = Tuner(executor)
        self._source_hash = sources_digest(self._tuner.environment.sources)
        self._turn = turn
        self._budget = TuningHours(settings.budget_s)
        self._rechecks = Allowance(settings.rechecks)
        self.tally = LoopState(self._device.name)
        self.error: Exception | None = None
        self._job: Job | None = None
        self._sweep_id: int | None = None
        self._rest_s = _FIRST_REST_S
        self._complaint = ""
        self._ended = threading.Event()
        self._beating = threading.Lock()
        self._thread = threading.Thread(name=self.name, daemon=True, target=self._run)

    @property
    def is_alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def start(self, on_end: Callable[[], None]) -> None:
        """Begin; the loop's thread calls `on_end` when it has ended, with `error` if it met one."""
        self._on_end = on_end
        self._thread.start()
        threading.Thread(name=f"{self.name} pulse", daemon=True, target=self._pulse).start()

    def drop(self) -> None:
        """Give up the job that runs, soon."""
        job = self._job
        if job is not None:
            self._tuner.drop(job, Dropped("the daemon stops"))

    def _run(self) -> None:
        try:
            self._beat()
            self._link.until(self._stop.soon, lambda store: store.add_device(self._device))
            self._link.until(self._stop.soon, self._queue_old)
            while not self._stop.soon.is_set() and self._step_or_rest():
                pass
        except Exception as error:
            if not (isinstance(error, DatabaseError) and self._stop.soon.is_set()):
                self.error = error
        finally:
            self._leave()
            if self._turn is not None:
                self._turn.end()
            self._state("stopped")
            self._ended.set()
            self._on_end()

    def _step_or_rest(self) -> bool:
        try:
            return self._step()
        except Exception as error:
            lack = shortage(error)
            if lack is None:
                raise
            return self._rest(DeviceError(lack))

    def _step(self) -> bool:
        """Do one job, or wait a little; False when there is nothing to do and nobody is to wait for it."""
        wait_s = self._budget.wait_s()
        if wait_s:
            again = not self._settings.once
            return again and self._wait("the budget of this hour is spent", min(wait_s, _MOST_REST_S))
        hindrance = None if self._turn is None else self._turn.take(self._tuner.warm)
        if hindrance is not None:
            return self._wait(hindrance, self._settings.poll_s)
        job = self._link.until(self._stop.soon, self._claim, self._free)
        if job is not None:
            trouble = self._do(job)
            return trouble is None or self._rest(trouble)
        self._leave()
        self._state("idle")
        if self._settings.once:
            return False
        # Workers of a fleet that started together shall not ask together.
        self._stop.soon.wait(self._settings.poll_s * random.uniform(0.5, 1.0))
        return True

    def _claim(self, store: Store) -> Job | None:
        """The next job, which may be what a model just missed."""
        self._queue_misses(store)
        device = self._device
        mine = (device.name, device.arch, self._source_hash, self.name, self._settings.lease_s)
        return Queue(store).claim(*mine, least=float("-inf") if self._rechecks.is_left else 0.0)

    def _queue_misses(self, store: Store) -> None:
        try:
            new = queue_misses(store, self._link.misses)
        except DatabaseError:
            raise
        except AutotuneError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                say("misses stay", logging.WARNING, reason=self._complaint)
        else:
            if new:
                say("misses queued", jobs=new)

    def _queue_old(self, store: Store) -> None:
        """Once, because what runs here does not change: stale records, and those of another driver."""
        device = self._device
        try:
            stale = queue_stale(store, device)
            unverified = queue_unverified(store, device, self._tuner.environment)
        except DatabaseError as error:
            if not is_final(error):
                raise
            say("stale records stay", logging.WARNING, device=device.name, reason=str(error))
            return
        for event, new in (("stale queued", stale), ("rechecks queued", unverified)):
            if new:
                say(event, device=device.name, jobs=new)

    def _do(self, job: Job) -> AutotuneError | None:
        """Bring the job to an end and say which; what is wrong with the device, if anything."""
        self._job = job
        self._state("tuning")
        self._say("claim", job, attempt=job.attempts, reason=job.reason)
        try:
            return self._work_out(job)
        except DatabaseError as error:
            self._count("lost", job, logging.ERROR, reason=f"its end could not be stored: {error}")
            raise
        finally:
            self._job = None

    def _work_out(self, job: Job) -> AutotuneError | None:
        begin = time.monotonic()
        try:
            try:
                plan = self._link.until(self._stop.now, lambda store: self._tuner.plan(job, store))
            except DeviceError as error:
                self._park(job, str(error))
                return None
            if job.is_recheck:
                self._rechecks.take()
            result = self._tune(job, plan)
            if result.record is None and result.checked is None:
                self._fail(job, result.note, result.trials)
            else:
                self._store(job, result, begin)
        except Dropped as dropped:
            self._give_back(job, str(dropped))
        except LeaseLost as lost:
            self._count("lost", job, logging.WARNING, reason=str(lost))
        except DatabaseError:
            raise
        except _DeviceTrouble as trouble:
            self._give_back(job, str(trouble))
            return trouble
        except AutotuneError as error:
            self._fail(job, str(error))
        except Exception as error:
            _LOG.exception("job %s met a bug", job.id)
            self._fail(job, f"{type(error).__name__}: {error}")
        return None

    def _tune(self, job: Job, plan: JobPlan) -> Result:
        begin = time.monotonic()
        try:
            result = self._tuner.tune(job, plan)
        except (CompileError, DeviceError) as error:  # no job is to blame for it
            raise _DeviceTrouble(str(error)) from error
        except Exception as error:
            lack = shortage(error)
            if lack is None:
                raise
            raise _DeviceTrouble(lack) from error
        finally:
            self.tally.tuning_s += self._budget.spend(begin)
        self._rest_s = _FIRST_REST_S
        return result

    def _store(self, job: Job, result: Result, begin: float) -> None:
        def store_it(store: Store) -> None:
            what = (result.trials, result.winner, result.binary, result.dropped, result.checked)
            Queue(store).complete(job, self._sweep(store), *what)

        self._link.until(self._stop.now, store_it, self._free)
        record = result.record
        self._count(
            "done",
            job,
            config=record and str(record.config),
            gain=record and round(record.default_us / record.median_us, 3),
            trials=len(result.trials),
            seconds=round(time.monotonic() - begin, 1),
            note=result.note or None,
        )
        if result.checked is not None:
            self._tell_recheck(job, result.checked, result.trials)

    def _tell_recheck(self, job: Job, checked: Checked, trials: Sequence[Trial]) -> None:
        """Say and count what became of the record, and whether its time is another one than it was."""
        ratio = checked.change_among(trials)
        self.tally.rechecks[checked.verdict] += 1
        self.tally.changes += ratio is not None
        level = logging.INFO if ratio is None else logging.WARNING
        told = {"verdict": checked.verdict, "config": str(checked.record.config)}
        self._say(
            "recheck" if ratio is None else "changed", job, level, **told, ratio=ratio and round(ratio, 3)
        )

    def _sweep(self, store: Store) -> int:
        """The sweep that the results of this stretch of work belong to."""
        if self._sweep_id is None:
            arguments = {"mode": DEFAULT_MODE, "daemon": self.name}
            self._sweep_id = store.begin_sweep(self._device, self._tuner.environment, arguments)
        return self._sweep_id

    def _park(self, job: Job, reason: str) -> None:
        parked = self._link.until(self._stop.now, lambda store: Queue(store).park(job, reason))
        self._count("parked" if parked else "lost", job, logging.WARNING, reason=reason)

    def _fail(self, job: Job, reason: str, trials: Sequence[Trial] = ()) -> None:
        def fail_it(store: Store) -> str:
            return Queue(store).fail(job, reason, self._sweep(store) if trials else None, trials)

        state = self._link.until(self._stop.now, fail_it)
        outcome = {"parked": "parked", "queued": "failed"}.get(state, "lost")
        self._count(outcome, job, logging.WARNING, reason=reason)

    def _give_back(self, job: Job, reason: str) -> None:
        self._link.until(self._stop.now, lambda store: Queue(store).give_back(job))
        self._count("given back", job, reason=reason)

    def _rest(self, trouble: AutotuneError) -> bool:
        """Wait ever longer for a device that cannot be used."""
        if self._settings.once:
            raise trouble
        rest_s, self._rest_s = self._rest_s, min(2 * self._rest_s, _MOST_REST_S)
        return self._wait(str(trouble), rest_s)

    def _wait(self, reason: str, seconds: float) -> bool:
        self._leave()
        is_new = self.tally.trouble != reason
        self._state("waiting", reason)
        if is_new:
            say("waiting", device=self._device.name, reason=reason)
        self._stop.soon.wait(seconds)
        return True

    def _free(self) -> None:
        """Let others have the device."""
        self._tuner.rest()
        if self._turn is not None:
            self._turn.pause()

    def _leave(self) -> None:
        """Free the device, and end the sweep that the results since belong to."""
        self._free()
        if self._sweep_id is None:
            return
        sweep_id, self._sweep_id = self._sweep_id, None
        # Where the database is away it stays `running`, as one that was killed does.
        with contextlib.suppress(DatabaseError):
            self._link.once(lambda store: store.finish_sweep(sweep_id, "finished"))

    def _count(self, outcome: str, job: Job, level: int = logging.INFO, **fields: object) -> None:
        self.tally.count(outcome)
        self._say(outcome, job, level, **fields)

    def _say(self, event: str, job: Job, level: int = logging.INFO, **fields: object) -> None:
        say(event, level, device=self._device.name, job=job.id, problem=str(job.problem), **fields)

    def _state(self, state: str, trouble: str | None = None) -> None:
        changed = state != self.tally.state
        self.tally.state, self.tally.trouble = state, trouble
        if changed:
            self._beat()

    def _beat(self) -> None:
        device, job = self._device, self._job
        with self._beating, contextlib.suppress(DatabaseError):  # the link has said so
            job_id = None if job is None else job.id
            worker = Worker(
                self.name, socket.gethostname(), device.name, device.arch, self.tally.state, job_id
            )
            self._link.once(lambda store: Queue(store).beat(worker))

    def _pulse(self) -> None:
        """Say that the worker lives, and keep its job's lease; the tuning ends when the lease is lost."""
        while not self._ended.wait(self._settings.beat_s):
            self._beat()
            job = self._job
            if job is not None and not self._renew(job):
                self._tuner.drop(job, LeaseLost(_LOST))

    def _renew(self, job: Job) -> bool:
        try:
            return self._link.once(lambda store: Queue(store).renew(job, self._settings.lease_s))
        except DatabaseError:
            return True  # whether the lease was kept, storing the result will tell
