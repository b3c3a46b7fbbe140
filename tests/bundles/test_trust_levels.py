"""How far a record is trusted where another driver runs, and what confirms it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from command_line import autotune
from daemons import PROBLEM, add, special
from databases import change, query
from lookup_world import make_small_world, ship, store
from store_samples import ENVIRONMENT, H200, LAYER, SOURCES, config, record

from autotune.bundles.format import BundleContents, encode, signature_line
from autotune.bundles.keys import new_key, signing_key, trust
from autotune.bundles.promotion import promote
from autotune.bundles.pull import pull
from autotune.bundles.trust import sign
from autotune.daemon.budget import Allowance
from autotune.records.lookup import Lookup
from autotune.records.misses import UNVERIFIED, Miss, append, miss_file, read
from autotune.search.demand import RECHECK, queue_misses, queue_unverified
from autotune.store import channels
from autotune.store.channels import promotions
from autotune.store.entries import Entry, Wanted
from autotune.store.history import history
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.errors import BundleError, DatabaseError
from autotune.values.layer import Problem
from autotune.values.record import Checked, Trial, sources_digest

HERE = (H200.name, H200.arch, sources_digest(SOURCES))
NEWER = replace(ENVIRONMENT, driver="CUDA 13.1")


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return make_small_world(tmp_path, monkeypatch)


def driver(monkeypatch, version: str) -> None:
    monkeypatch.setattr("autotune.records.lookup.driver_of", lambda _: version)


def measured_again(store: Store, of, verdict: str, *times: float, environment=NEWER) -> None:
    """What a recheck of the record stores, with the median and interval of its config now."""
    trial = Trial(of.problem, of.config, "ok", *times, mode=of.mode, clock_mhz=1755)
    now = None if verdict == "dropped" else replace(of, median_us=times[0], low_us=times[1], high_us=times[2])
    sweep = store.begin_sweep(H200, environment, {})
    dropped = [of] if now is None else []
    store.add_result(sweep, [trial], now, None, dropped, Checked(of, verdict))


def test_another_driver_makes_an_answer_unverified_and_it_still_answers(world, tmp_path, monkeypatch):
    store(world, record(best=config(16)))
    ship(tmp_path, record(m=2))
    for version, why in (
        ("CUDA 13.0", None),
        ("CUDA 13.1", "measured with CUDA 13.0, and here is CUDA 13.1"),
    ):
        driver(monkeypatch, version)
        answers = [Lookup(H200).answer(Problem(LAYER, m)) for m in (1, 2)]
        assert [(each.source, each.unverified) for each in answers] == [("exact", why), ("shipped", why)]
    assert answers[0].config == config(16)


def test_other_sources_are_not_used(world, monkeypatch):
    store(world, replace(record(), source_hash="another"))
    driver(monkeypatch, "CUDA 13.1")
    assert Lookup(H200).answer(Problem(LAYER, 1)).source == "default"


def test_calls_of_unverified_answers_are_noted(world, monkeypatch):
    store(world, record())
    driver(monkeypatch, "CUDA 13.1")
    lookup = Lookup(H200)
    tally = lookup.tally([lookup.answer(Problem(LAYER, 1))])
    tally.calls[0] += 3
    tally.note_all()
    assert list(read(miss_file())) == [Miss(Problem(LAYER, 1), *HERE, UNVERIFIED, 3)]


@pytest.mark.usefixtures("world")
def test_what_is_called_most_is_rechecked_first_and_only_so_often(url, tmp_path):
    old = [record(m=m) for m in (1, 2, 4)]
    store(url, *old)
    file = tmp_path / "misses.jsonl"
    for m, calls in ((1, 5), (2, 50)):
        append(file, Miss(Problem(LAYER, m), *HERE, UNVERIFIED, calls))
    with Store.open(url) as opened:
        queue = Queue(opened)
        assert queue_unverified(opened, H200, NEWER) == 3
        assert queue_unverified(opened, H200, ENVIRONMENT) == 0
        queue_misses(opened, file)
        queue.add([(Problem(LAYER, 8), 0.5)], *HERE)
        assert [job.problem.m for job in queue.jobs()] == [8, 2, 1, 4]
        assert [job.is_recheck for job in queue.jobs()] == [False, True, True, True]
        assert queue.claim(*HERE, "me", 60.0, least=0.0).problem.m == 8
        assert queue.claim(*HERE, "me", 60.0, least=0.0) is None
        job = queue.claim(*HERE, "me", 60.0)
        assert job.problem.m == 2
        queue.complete(job, opened.begin_sweep(H200, NEWER, {}), (), None, None)
        append(file, Miss(Problem(LAYER, 2), *HERE, UNVERIFIED, 7))
        assert queue_misses(opened, file) == 1
        assert [job.priority - RECHECK for job in queue.jobs("queued")] == [7.0, 5.0, 0.0]


def test_what_was_measured_today_is_not_queued_again(world, tmp_path):
    store(world, replace(record(), created_at="2999-01-01T00:00:00+00:00"))
    file = tmp_path / "misses.jsonl"
    append(file, Miss(Problem(LAYER, 1), *HERE, UNVERIFIED, 5))
    with Store.open() as opened:
        assert queue_misses(opened, file) == 0


def test_an_allowance_is_one_of_any_hour():
    now = [0.0]
    allowance = Allowance(2, lambda: now[0])
    for at in (0.0, 1000.0):
        now[0] = at
        assert allowance.is_left
        allowance.take()
    assert not allowance.is_left
    now[0] = 3600.0
    assert allowance.is_left
    allowance.take()
    assert not allowance.is_left
    assert not Allowance(0).is_left


def test_a_daemon_rechecks_what_an_older_driver_measured(tmp_path):
    db = tmp_path / "here.db"
    add(db)
    with special(tmp_path, once=True) as daemon:
        daemon.until("done")
        assert daemon.end() == 0
    older = "UPDATE environment SET driver = 'older', digest = 'older'"
    change(db, older, "UPDATE record SET median_us = 9e6, low_us = 8e6, high_us = 1e7")
    with special(tmp_path, once=True, rechecks=0) as daemon:
        assert daemon.until("rechecks queued")["jobs"] == 1
        assert daemon.end() == 0
    assert query(str(db), "SELECT state FROM job") == [{"state": "queued"}]
    with special(tmp_path, once=True) as daemon:
        daemon.until("done")
        changed = daemon.until("changed")
        assert daemon.end() == 0
    assert changed["ratio"] < 0.5
    assert changed["verdict"] in ("kept", "replaced")
    with Store.open(str(db)) as opened:
        (now,) = opened.records()
        assert now.environment.driver != "older"
        assert now.problem == PROBLEM
        events = [event.event for event in history(opened)]
    assert events in (["sweep", "kept"], ["sweep", "replaced", "sweep"])


@pytest.mark.usefixtures("world")
def test_history_tells_each_time_and_a_change_beyond_noise(url):
    store(url, record())
    with Store.open(url) as opened:
        measured_again(opened, record(), "kept", 5.3, 5.2, 5.4)
        measured_again(opened, record(), "kept", 6.0, 5.9, 6.1)
        measured_again(opened, record(), "dropped", 9.0, 8.9, 9.1)
        events = history(opened)
    told = [(each.event, each.median_us, each.driver, each.clock_mhz, each.change) for each in events]
    assert told == [
        ("sweep", 5.25, "CUDA 13.0", None, None),
        ("kept", 5.3, "CUDA 13.1", 1755, None),
        ("kept", 6.0, "CUDA 13.1", 1755, 6.0 / 5.3),
        ("dropped", 9.0, "CUDA 13.1", 1755, 9.0 / 6.0),
    ]
    assert [each.at for each in events] == sorted(each.at for each in events)


def test_the_command_exits_3_when_a_time_has_changed(world, tmp_path):
    store(world, record())
    shown = lambda *more: autotune("history", "--json", "--db", str(world), *more, cwd=tmp_path)  # noqa: E731
    with Store.open() as opened:
        measured_again(opened, record(), "kept", 5.3, 5.2, 5.4)
    assert shown("--require", "steady").returncode == 0
    nothing = shown("--require", "steady", "--device", "NVIDIA H300")
    assert (nothing.returncode, nothing.stdout) == (3, "")
    assert "nothing was measured of what was asked for" in nothing.stderr
    absent = autotune("history", "--require", "steady", "--db", "absent.db", cwd=tmp_path)
    assert (absent.returncode, "is not there, or empty" in absent.stderr) == (1, True)
    assert not (tmp_path / "absent.db").exists()
    with Store.open() as opened:
        measured_again(opened, record(), "kept", 9.0, 8.9, 9.1)
    ended = shown("--require", "steady")
    assert ended.returncode == 3
    assert "changed beyond noise: 1 record" in ended.stderr
    assert [json.loads(line)["event"] for line in ended.stdout.splitlines()] == ["sweep", "kept", "kept"]
    assert shown().returncode == 0


def signed(name: str, *records) -> bytes:
    content = encode(name, BundleContents([Entry(each, H200, ENVIRONMENT) for each in records]))
    return content + signature_line(sign(content, signing_key("release")))


def promoted(url: str, content: bytes, channel: str = "stable", reason: str | None = None) -> str:
    with Store.open(url) as opened:
        return promote(opened, content, "it", channel, reason)[1]


@pytest.mark.usefixtures("world")
def test_stable_needs_a_recheck_that_confirms(url):
    trust(new_key("release"))
    store(url, record(), record(m=2))
    content = signed("mine", record(), record(m=2))
    assert promoted(url, content, "candidate") == "a candidate"
    with pytest.raises(BundleError, match="no recheck confirms a record of NVIDIA H200"):
        promoted(url, content)
    with Store.open(url) as opened:
        measured_again(opened, record(), "kept", 5.3, 5.2, 5.4)
    assert promoted(url, content) == "rechecks kept 1 of NVIDIA H200"
    with Store.open(url) as opened:
        measured_again(opened, record(m=2), "replaced", 9.0, 8.9, 9.1)
    with pytest.raises(BundleError, match="a recheck replaced its record of m=2"):
        promoted(url, content)
    assert promoted(url, content, reason="known, and fixed next week") == "forced: known, and fixed next week"
    with Store.open(url) as opened:
        reasons = [each.reason for each in promotions(opened, "stable")]
    assert reasons == ["forced: known, and fixed next week", "rechecks kept 1 of NVIDIA H200"]


@pytest.mark.usefixtures("world")
def test_a_bundle_that_is_not_trusted_is_not_promoted(url):
    new_key("release")
    with pytest.raises(BundleError, match="nobody here trusts"):
        promoted(url, signed("mine", record()), reason="please")
    with Store.open(url) as opened:
        assert promotions(opened, "stable") == []


@pytest.mark.usefixtures("world")
def test_going_back_is_one_command(url):
    trust(new_key("release"))
    contents = [signed("mine", record(best=config(8 * tile))) for tile in (1, 2, 3)]
    for content in contents:
        promoted(url, content, reason="first")

    assert pulled_answer(url) == 24
    for expected in (16, 8):
        with Store.open(url) as central:
            channels.roll_back(central, "stable", "rollback")
        assert pulled_answer(url) == expected
    with Store.open(url) as central, pytest.raises(DatabaseError, match="names no bundle before"):
        channels.roll_back(central, "stable", "rollback")


def pulled_answer(url: str) -> int:
    with Store.open() as here:
        pull(here, url, Wanted(), "stable")
    return Lookup(H200).answer(Problem(LAYER, 1)).config["tile_m"]


@pytest.mark.usefixtures("world")
def test_a_channel_may_name_nothing_yet(url):
    store(url, record())
    with pytest.raises(DatabaseError, match="channel stable names no bundle"):
        pulled_answer(url)
