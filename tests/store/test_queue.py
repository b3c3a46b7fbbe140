"""The queue's methods, on SQLite and on PostgreSQL: who gets which job, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from databases import connected, query, rows
from store_samples import ENVIRONMENT, FAMILY, H100, H200, LAYER, SOURCES, binary, config, record, trials

from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.errors import LeaseLost
from autotune.values.job import Job, Worker
from autotune.values.layer import Layer, Problem
from autotune.values.record import Trial, sources_digest

HERE = (H200.name, H200.arch, sources_digest(SOURCES))
ONE, TWO, FOUR = (Problem(LAYER, m) for m in (1, 2, 4))

FINISHED = """
INSERT INTO job (n, k, scheme, m, device_id, source_hash, priority, state, attempts, not_before, created_at)
WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 20000)
SELECT n, 64, 'int4-g64-zp-fp16', 1, device.id, :source_hash, 1, 'done', 1, 0, 0 FROM number, device
"""


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


@pytest.fixture
def queue(store: Store) -> Queue:
    return Queue(store)


def claim(queue: Queue, worker: str = "me", here: tuple[str, str, str] = HERE) -> Job | None:
    return queue.claim(*here, worker, 60.0)


def end_leases(url: str) -> None:
    query(url, "UPDATE job SET lease_until = lease_until - 1000")


def end_waits(url: str) -> None:
    query(url, "UPDATE job SET not_before = not_before - 1000")


def state_of(queue: Queue, job: Job) -> str:
    (found,) = [each for each in queue.jobs() if each.id == job.id]
    return found.state


def test_sources_have_one_digest_in_any_order():
    assert sources_digest(SOURCES) == sources_digest(dict(reversed(SOURCES.items())))
    assert sources_digest(SOURCES) != sources_digest(SOURCES | {FAMILY: "f" * 16})
    assert len(sources_digest(SOURCES)) == 16


def test_a_job_is_queued_once_for_its_problem_device_and_sources(queue):
    assert queue.add([(ONE, 1.0), (TWO, 1.0)], *HERE) == 2
    assert queue.add([(ONE, 1.0), (FOUR, 1.0), (FOUR, 3.0)], *HERE) == 1
    for other in ((H100.name, *HERE[1:]), (HERE[0], "sm_80", HERE[2]), (*HERE[:2], "other sources")):
        assert queue.add([(ONE, 1.0)], *other) == 1
    similar = [replace(LAYER, zero_point=False), replace(LAYER, dtype="bf16"), replace(LAYER, group_size=64)]
    assert queue.add([(Problem(layer, 1), 1.0) for layer in similar], *HERE) == 3
    assert queue.add([], *HERE) == 0
    assert len(queue.jobs()) == 9
    assert len(queue.jobs(device=H100.name)) == 1


def test_the_highest_priority_comes_first_and_of_equals_the_oldest(queue):
    queue.add([(TWO, 1.0)], *HERE)
    queue.add([(FOUR, 2.5), (ONE, 1.0)], *HERE)
    assert [each.problem for each in queue.jobs()] == [FOUR, TWO, ONE]
    assert [each.problem for each in queue.jobs(limit=2)] == [FOUR, TWO]
    assert [claim(queue).problem for _ in range(3)] == [FOUR, TWO, ONE]
    assert claim(queue) is None


def test_adding_again_raises_a_priority_and_never_lowers_it(queue):
    queue.add([(ONE, 1.0), (TWO, 2.0)], *HERE)
    queue.add([(ONE, 3.0), (TWO, 0.5)], *HERE)
    assert [(each.problem, each.priority) for each in queue.jobs()] == [(ONE, 3.0), (TWO, 2.0)]


def test_a_claim_is_of_the_device_arch_and_sources(queue):
    queue.add([(ONE, 1.0)], *HERE)
    for other in ((H100.name, *HERE[1:]), (HERE[0], "sm_80", HERE[2]), (*HERE[:2], "other sources")):
        assert claim(queue, here=other) is None
    assert claim(queue).problem == ONE


def test_a_claim_finds_its_job_without_a_look_at_finished_ones(queue, url):
    queue.add([(ONE, 1.0)], *HERE)
    query(url, FINISHED, source_hash=HERE[2])
    claims = []

    def note(_, __, statement: str, parameters: object, *___) -> None:
        if statement.startswith("UPDATE job"):
            claims.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        assert claim(queue).problem == ONE
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    ((statement, parameters),) = claims
    with connected(url) as connection:
        connection.exec_driver_sql("ANALYZE")
        explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
        plan = str(connection.exec_driver_sql(explain + statement, parameters).all())
    assert "job_open" in plan
    assert "SCAN" not in plan
    assert "Seq Scan on job" not in plan


def test_a_claimed_job_says_who_has_it_until_when_by_the_databases_clock(queue):
    layer = Layer(64, 72, group_size=-1, dtype="bf16", zero_point=False)
    queue.add([(Problem(layer, 16), 2.5)], *HERE)
    before = queue.clock()
    job = claim(queue, "host:1:0")
    after = queue.clock()
    assert before + 60 <= job.lease_until <= after + 60
    assert job.created_at <= before
    assert (job.problem, job.device, job.arch, job.source_hash) == (Problem(layer, 16), *HERE)
    assert (job.state, job.attempts, job.worker, job.priority) == ("running", 1, "host:1:0", 2.5)
    assert queue.jobs("running") == [job]
    assert queue.jobs("queued") == []
    assert queue.counts() == {"running": 1}


def test_a_renewed_lease_lasts_longer(queue):
    queue.add([(ONE, 1.0)], *HERE)
    job = claim(queue)
    assert queue.renew(job, 600.0)
    assert queue.jobs()[0].lease_until > job.lease_until + 500


def test_a_result_is_stored_with_the_end_of_its_job(store, queue, url):
    queue.add([(ONE, 1.0)], *HERE)
    job, sweep = claim(queue), store.begin_sweep(H200, ENVIRONMENT, {})
    for _ in range(2):  # as a worker does whom a failing server has told nothing
        queue.complete(job, sweep, trials(record()), record(), binary())
    assert store.records() == [record()]
    assert store.trials(ONE, H200) == trials(record())
    assert len(rows(url, "binary")) == 1
    assert queue.counts() == {"done": 1}
    assert not queue.renew(job, 60.0)
    assert queue.add([(ONE, 9.0)], *HERE) == 0
    assert claim(queue) is None


def test_a_result_that_cannot_be_stored_leaves_the_job_running(store, queue):
    queue.add([(ONE, 1.0)], *HERE)
    job = claim(queue)
    with pytest.raises(Exception, match="No row was found"):
        queue.complete(job, 99, [], record(), None)
    assert queue.jobs() == [job]
    assert store.records() == []


def test_a_job_is_claimed_again_when_its_lease_has_ended(queue, url):
    queue.add([(ONE, 1.0)], *HERE)
    first = claim(queue, "first")
    assert claim(queue, "second") is None
    end_leases(url)
    second = claim(queue, "second")
    assert (second.id, second.attempts, second.worker) == (first.id, 2, "second")
    assert second.reason == "worker first vanished: its lease ended"


def test_a_result_whose_lease_was_lost_is_discarded(store, queue, url):
    queue.add([(ONE, 1.0)], *HERE)
    sweep = store.begin_sweep(H200, ENVIRONMENT, {})
    late = claim(queue)
    end_leases(url)
    current = claim(queue)  # by a worker of the same name: a restarted daemon may get its number again
    for job in (late, replace(current, worker="another")):
        with pytest.raises(LeaseLost) as raised:
            queue.complete(job, sweep, trials(record()), record(), binary())
        assert str(raised.value) == (
            f"job {job.id} ({ONE}) is no longer at worker {job.worker}, so its result is discarded; "
            "see: autotune jobs"
        )
        assert not queue.renew(job, 60.0)
        assert queue.fail(job, "too late") == "running"
        queue.give_back(job)
    assert queue.jobs() == [current]
    assert (rows(url, "trial"), rows(url, "record"), rows(url, "binary")) == ([], [], [])
    queue.complete(current, sweep, trials(record()), record(), None)
    with pytest.raises(LeaseLost):
        queue.complete(late, sweep, trials(record()), record(), None)
    assert store.records() == [record()]


def test_a_lease_that_ended_is_kept_as_long_as_nobody_else_came(store, queue, url):
    queue.add([(ONE, 1.0)], *HERE)
    job = claim(queue)
    end_leases(url)
    assert queue.renew(job, 60.0)
    end_leases(url)
    queue.complete(job, store.begin_sweep(H200, ENVIRONMENT, {}), [], record(), None)
    assert store.records() == [record()]


def test_a_failed_job_waits_longer_each_time_and_is_parked_after_the_third(queue, url):
    queue.add([(ONE, 1.0)], *HERE)
    for attempt, wait_s in ((1, 30), (2, 120)):
        job = claim(queue)
        assert job.attempts == attempt
        before = queue.clock()
        assert queue.fail(job, f"failure {attempt}") == "queued"
        (waiting,) = queue.jobs("queued")
        assert before + wait_s <= waiting.not_before <= queue.clock() + wait_s
        assert (waiting.reason, waiting.worker, waiting.lease_until) == (f"failure {attempt}", None, None)
        assert claim(queue) is None
        end_waits(url)
    assert queue.fail(claim(queue), "failure 3") == "parked"
    end_waits(url)
    assert claim(queue) is None
    (parked,) = queue.jobs("parked")
    assert (parked.attempts, parked.reason) == (3, "failure 3")
    assert queue.add([(ONE, 9.0)], *HERE) == 0
    assert queue.jobs() == [parked]


def test_what_was_tried_in_vain_is_stored_with_the_failure(store, queue, url):
    queue.add([(ONE, 1.0)], *HERE)
    sweep_id = store.begin_sweep(H200, ENVIRONMENT, {})
    tried = [Trial(ONE, config(), "failed", error="it did not compile")]
    job = claim(queue)
    assert queue.fail(job, "no config passed", sweep_id, tried) == "queued"
    assert store.trials(ONE, H200) == tried
    end_waits(url)
    claim(queue)
    assert queue.fail(job, "no config passed", sweep_id, tried) == "running"
    assert store.trials(ONE, H200) == tried


def test_a_job_that_nobody_can_do_is_parked_at_once(queue):
    queue.add([(ONE, 1.0), (TWO, 0.5)], *HERE)
    job, other = claim(queue), claim(queue)
    assert queue.park(job, "no family can do it")
    (parked,) = queue.jobs("parked")
    assert (parked.id, parked.attempts, parked.reason) == (job.id, 1, "no family can do it")
    queue.cancel([other.id])
    assert not queue.park(other, "no family can do it")


def test_a_job_whose_workers_vanish_is_parked_and_the_next_one_claimed(queue, url):
    queue.add([(ONE, 9.0), (TWO, 1.0)], *HERE)
    for attempt in (1, 2, 3):
        assert claim(queue, f"worker{attempt}").problem == ONE
        end_leases(url)
    assert claim(queue).problem == TWO
    (parked,) = queue.jobs("parked")
    assert (parked.attempts, parked.worker, parked.lease_until) == (3, None, None)
    assert parked.reason == "worker worker3 vanished: its lease ended"


def test_a_job_that_is_given_back_is_claimed_at_once_and_its_attempt_not_counted(queue):
    queue.add([(ONE, 1.0)], *HERE)
    first = claim(queue)
    queue.give_back(first)
    assert queue.jobs()[0].state == "queued"
    assert claim(queue, "another").attempts == 1
    assert not queue.renew(first, 60.0)


def test_a_running_job_that_is_cancelled_is_lost_to_its_worker(store, queue, url):
    queue.add([(ONE, 1.0), (TWO, 2.0), (FOUR, 3.0)], *HERE)
    done, running, waiting = claim(queue), claim(queue), queue.jobs("queued")[0]
    sweep = store.begin_sweep(H200, ENVIRONMENT, {})
    queue.complete(done, sweep, [], record(m=4), None)
    assert queue.cancel([done.id, running.id, waiting.id]) == 2
    assert not queue.renew(running, 60.0)
    with pytest.raises(LeaseLost):
        queue.complete(running, sweep, [], record(m=2), None)
    assert queue.fail(running, "stopped") == "cancelled"
    end_leases(url)
    assert claim(queue) is None
    assert queue.counts() == {"done": 1, "cancelled": 2}


def test_retry_queues_afresh_what_does_not_run(store, queue, url):
    problems = [Problem(LAYER, m) for m in (1, 2, 4, 8, 16)]
    queue.add([(problem, 10.0 - problem.m / 2) for problem in problems], *HERE)
    done, failed, running, cancelled, parked = (claim(queue) for _ in problems)
    queue.complete(done, store.begin_sweep(H200, ENVIRONMENT, {}), [], None, None)
    queue.fail(failed, "once")
    queue.cancel([cancelled.id])
    queue.fail(replace(parked, attempts=3), "not its attempt")
    query(url, "UPDATE job SET attempts = 3 WHERE id = :id", id=parked.id)
    assert queue.fail(replace(parked, attempts=3), "thrice") == "parked"

    assert queue.retry() == 1
    (again,) = queue.jobs("queued")[-1:]
    assert (again.id, again.attempts, again.reason, again.worker) == (parked.id, 0, None, None)
    assert queue.retry([done.id, failed.id, running.id, cancelled.id]) == 3
    assert state_of(queue, running) == "running"
    assert [claim(queue).problem.m for _ in range(4)] == [1, 2, 8, 16]


def test_workers_say_what_they_do(queue, url):
    queue.add([(ONE, 1.0)], *HERE)
    mine = Worker("host:1:0", "host", H200.name, H200.arch, "idle")
    other = replace(mine, name="gpu-7:1:0", host="gpu-7")
    before = queue.clock()
    queue.beat(mine)
    queue.beat(other)
    query(url, "UPDATE worker SET last_seen = last_seen - 50, started_at = started_at - 50")
    job = claim(queue, mine.name)
    queue.beat(replace(mine, state="tuning", job_id=job.id))
    seven, host = queue.workers()
    assert replace(seven, last_seen=0.0, started_at=0.0) == other
    assert (host.state, host.job_id) == ("tuning", job.id)
    assert seven.last_seen < before <= host.last_seen <= queue.clock()
    assert host.started_at < before


def test_workers_that_were_not_seen_for_a_week_are_forgotten(queue, url):
    mine = Worker("host:1:0", "host", H200.name, H200.arch, "idle")
    queue.beat(replace(mine, name="old"))
    queue.beat(replace(mine, name="older"))
    query(url, "UPDATE worker SET last_seen = last_seen - 8 * 86400 WHERE name = 'older'")
    query(url, "UPDATE worker SET last_seen = last_seen - 6 * 86400 WHERE name = 'old'")
    queue.beat(mine)
    assert [each.name for each in queue.workers()] == ["host:1:0", "old"]
