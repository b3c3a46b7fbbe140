"""`autotune jobs` and `autotune devices`, run as users run them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import PROGRAM, autotune
from databases import query
from store_samples import ENVIRONMENT, H100

from autotune.families import registry
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.device import cpu_device
from autotune.values.job import Job, Worker
from autotune.values.layer import BUCKETS, Layer, Problem
from autotune.values.record import sources_digest

LAYER = Layer(64, 64, group_size=64)
DEVICE = cpu_device()
HERE = (DEVICE.name, DEVICE.arch)
DEADLINE_S = 60.0


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    """The queue of the database that `jobs` asks."""
    with Store.open(str(tmp_path / "here.db")) as store:
        yield Queue(store)


def jobs(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return autotune("jobs", *arguments, "--db", "here.db", cwd=tmp_path)


def listed(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    ended = jobs(tmp_path, "list", "--json", *arguments)
    assert ended.returncode == 0, ended.stderr
    found: list[dict[str, Any]] = json.loads(ended.stdout)
    return found


def fill(queue: Queue, *ms: int) -> list[Job]:
    """Jobs for this machine's CPU, the first one the most urgent."""
    problems = [(Problem(LAYER, m), 100.0 - i) for i, m in enumerate(ms)]
    queue.add(problems, *HERE, sources_digest({"cpu": "some"}))
    return queue.jobs()


def claim(queue: Queue) -> Job:
    job = queue.claim(*HERE, sources_digest({"cpu": "some"}), "host:1:0", 60.0)
    assert job is not None
    return job


@contextmanager
def watching(tmp_path: Path, stdout: int) -> Iterator[subprocess.Popen[str]]:
    """`jobs watch`, which must be ended by the caller."""
    command = (*PROGRAM, "jobs", "watch", "--db", "here.db")
    with subprocess.Popen(command, cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("verb", ["list", "add", "retry", "cancel", "watch"])
def test_every_help_has_an_example(verb: str, tmp_path: Path) -> None:
    shown = autotune("jobs", verb, "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "Example" in shown.stdout


def test_a_models_problems_are_added_and_listed(tmp_path: Path) -> None:
    numbers = ("--shapes", "n=64,k=64,group_size=64", "--m", "1,3", "--device", "cpu")
    added = jobs(tmp_path, "add", *numbers)
    assert (added.returncode, added.stderr) == (0, "m=3 is served by the bucket m=4\n")
    assert added.stdout == f"2 jobs queued for {DEVICE.name}, 0 there already\n"
    again = jobs(tmp_path, "add", *numbers, "--m", "1,2", "--priority", "5")
    assert again.stdout == f"1 job queued for {DEVICE.name}, 1 there already\n"

    urgent, also, later = listed(tmp_path)
    assert [each["m"] for each in (urgent, also, later)] == [1, 4, 2]
    assert urgent["priority"] == also["priority"] > later["priority"] == 5
    hashes = {family.name: family.source_hash() for family in registry.families_of(DEVICE)}
    expected = {
        "n": 64,
        "k": 64,
        "group_size": 64,
        "dtype": "fp16",
        "zero_point": True,
        "m": 1,
        "device": DEVICE.name,
        "arch": DEVICE.arch,
        "source_hash": sources_digest(hashes),
        "state": "queued",
        "attempts": 0,
    }
    assert urgent.items() >= expected.items()

    table = jobs(tmp_path)
    header, first, *_ = table.stdout.splitlines()
    assert header.split()[:5] == ["job", "state", "layer", "m", "device"]
    assert first.split()[:4] == ["1", "queued", "64x64", "g64"]
    assert len(table.stdout.splitlines()) == 4
    column = header.index("priority")
    shown = [line[column:].split()[0] for line in table.stdout.splitlines()]
    assert shown == ["priority", "user", "user", "5"]


def test_a_queue_without_jobs_and_a_database_without_workers_say_so(tmp_path: Path) -> None:
    for verb, arguments, words in (
        ("jobs", (), "the queue is empty; autotune jobs add --shapes MODEL fills it\n"),
        ("jobs", ("--state", "parked"), "no such job; autotune jobs shows all\n"),
        ("devices", (), "no worker in the last week; autotune daemon starts one\n"),
    ):
        shown = autotune(verb, *arguments, "--db", "here.db", cwd=tmp_path)
        assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", words)


def test_jobs_are_added_for_a_device_model_that_is_elsewhere(queue: Queue, tmp_path: Path) -> None:
    numbers = ("--shapes", "n=256,k=256", "--device", H100.name)
    unknown = jobs(tmp_path, "add", *numbers)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "'NVIDIA H100' is not" in unknown.stderr
    with Store.open(str(tmp_path / "here.db")) as store:
        store.begin_sweep(H100, ENVIRONMENT, {})
    added = jobs(tmp_path, "add", *numbers)
    assert added.stdout == f"{len(BUCKETS)} jobs queued for NVIDIA H100, 0 there already\n"
    hashes = {family.name: family.source_hash() for family in registry.families_of(H100)}
    assert {(job.device, job.arch, job.source_hash) for job in queue.jobs()} == {
        (H100.name, H100.arch, sources_digest(hashes))
    }


def test_a_list_is_of_a_state_and_a_device(queue: Queue, tmp_path: Path) -> None:
    fill(queue, 1, 2)
    queue.add([(Problem(LAYER, 4), 1.0)], H100.name, H100.arch, "some")
    claim(queue)
    assert [each["m"] for each in listed(tmp_path)] == [1, 2, 4]
    assert [each["m"] for each in listed(tmp_path, "--state", "queued")] == [2, 4]
    assert [each["m"] for each in listed(tmp_path, "--device", "cpu")] == [1, 2]
    assert [each["m"] for each in listed(tmp_path, "--device", H100.name, "--state", "queued")] == [4]
    assert listed(tmp_path, "--device", "NVIDIA A100") == []


def test_parked_jobs_are_seen_with_their_reason_and_tried_again(queue: Queue, tmp_path: Path) -> None:
    fill(queue, 1)
    for _ in range(3):
        query(str(tmp_path / "here.db"), "UPDATE job SET not_before = 0")
        queue.fail(claim(queue), "no config passed:\nlaunch failed")
    shown = jobs(tmp_path, "--state", "parked").stdout.splitlines()
    assert len(shown) == 2
    assert shown[1].endswith("no config passed: launch failed")
    retried = jobs(tmp_path, "retry", "--parked")
    assert (retried.returncode, retried.stdout) == (0, "1 job queued again\n")
    assert queue.counts() == {"queued": 1}


def test_jobs_are_cancelled_and_queued_again_by_number(queue: Queue, tmp_path: Path) -> None:
    first, second, third = fill(queue, 1, 2, 4)
    assert jobs(tmp_path, "cancel", str(first.id), str(second.id)).stdout == "2 jobs cancelled\n"
    assert queue.counts() == {"cancelled": 2, "queued": 1}
    assert jobs(tmp_path, "retry", str(second.id)).stdout == "1 job queued again\n"
    running = claim(queue)
    assert running.id == second.id
    for verb, which, words in (
        ("retry", (first.id, running.id), f"not queued again: job {running.id} is running already"),
        ("cancel", (third.id, 77), "not cancelled: job 77 is not in the queue"),
    ):
        ended = jobs(tmp_path, verb, *map(str, which))
        assert (ended.returncode, ended.stderr) == (1, f"error: {words}\n")
        assert ended.stdout.startswith("1 job ")
    alone = jobs(tmp_path, "cancel", "99", "99", str(third.id))
    assert (alone.returncode, alone.stdout) == (1, "")
    words = f"job 99 is not in the queue; job {third.id} is cancelled already"
    assert alone.stderr == f"error: not cancelled: {words}\n"
    assert queue.counts() == {"queued": 1, "running": 1, "cancelled": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        ("add",),
        ("add", "--shapes", "llama7b", "--priority", "nan"),
        ("list", "--state", "lost"),
        ("retry",),
        ("retry", "1", "--parked"),
        ("retry", "one"),
        ("cancel",),
        ("cancel", "0"),
        ("cancel", str(2**63)),
        ("lst",),
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    ended = autotune("jobs", *arguments, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr


def test_what_no_family_can_do_is_not_queued(queue: Queue, tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "here.db")) as store:
        store.begin_sweep(H100, ENVIRONMENT, {})
    ended = jobs(tmp_path, "add", "--shapes", "n=256,k=256,dtype=fp32", "--device", H100.name)
    assert ended.returncode == 1
    assert "no kernel family on NVIDIA H100 can do" in ended.stderr
    assert queue.jobs() == []


def test_a_watch_that_is_piped_tells_each_job_and_each_change(queue: Queue, tmp_path: Path) -> None:
    fill(queue, 1, 2)
    with watching(tmp_path, subprocess.PIPE) as process:
        assert process.stdout is not None

        def told() -> tuple[int, str]:
            line = json.loads(process.stdout.readline())
            return line["m"], line["state"]

        assert [told(), told()] == [(1, "queued"), (2, "queued")]
        job = claim(queue)
        assert told() == (1, "running")
        queue.renew(job, 600.0)
        queue.give_back(job)
        assert told() == (1, "queued")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "interrupted\n"


def test_a_watch_on_a_terminal_shows_the_queue_until_interrupted(queue: Queue, tmp_path: Path) -> None:
    fill(queue, 1, 2)
    claim(queue)
    reader, terminal = pty.openpty()
    shown = b""
    with watching(tmp_path, terminal) as process:
        os.close(terminal)
        while b"64x64" not in shown:
            shown += os.read(reader, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
    os.close(reader)
    assert b"1 queued, 1 running" in shown


def test_devices_shows_who_serves_what_by_the_databases_clock(queue: Queue, tmp_path: Path) -> None:
    fill(queue, 1, 2)
    queue.beat(Worker("host:1:0", "host", *HERE, "tuning", job_id=2))
    queue.beat(Worker("far:2:0", "far", H100.name, H100.arch, "idle"))
    query(str(tmp_path / "here.db"), "UPDATE worker SET last_seen = last_seen - 7200 WHERE host = 'far'")
    shown = autotune("devices", "--db", "here.db", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    header, *rows = shown.stdout.splitlines()
    assert header.split() == ["device", "arch", "state", "job", "seen", "worker"]
    of = {row.split()[-1]: row.split() for row in rows}
    assert " ".join(of["host:1:0"]).startswith(f"{DEVICE.name} {DEVICE.arch} tuning 2 ")
    assert of["far:2:0"] == ["NVIDIA", "H100", "sm_90", "idle", "-", "2", "h", "ago", "far:2:0"]
    told = json.loads(autotune("devices", "--json", "--db", "here.db", cwd=tmp_path).stdout)
    seen = {each["name"]: each["seen_s"] for each in told}
    assert seen["far:2:0"] - seen["host:1:0"] == pytest.approx(7200, abs=60)
