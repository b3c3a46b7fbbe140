"""Misses and wishes become jobs: which, in what order, and nothing lost or done twice on the way."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import fitted
import pytest
import torch
from databases import query
from runtime_tools import AwqLinear, store_records, tokens_of, weight_of
from store_samples import H100, H200, as_ordinary_user, reachable_folder, record

from autotune.families import registry
from autotune.models.apply import apply
from autotune.prediction.files import own_fit
from autotune.prediction.finding import predictor_for
from autotune.prediction.fit import write
from autotune.prediction.saving import saving_us
from autotune.records.misses import Miss, append, miss_file
from autotune.search.demand import ASKED, ask, device_here, models_named, queue_misses
from autotune.search.saving import saved_us
from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.device import cpu_device
from autotune.values.errors import AutotuneError, DatabaseError, DeviceError
from autotune.values.layer import Layer, Problem
from autotune.values.record import sources_digest

DEVICE = cpu_device()
LAYER, WIDE = Layer(64, 64, group_size=64), Layer(4096, 64, group_size=64)
DEADLINE_S = 60.0
QUEUEING = """
import sys
from pathlib import Path
from autotune.search.demand import queue_misses
from autotune.store.store import Store
with Store.open(sys.argv[1]) as store:
    print("ready", flush=True)
    queue_misses(store, Path(sys.argv[2]))
    while sys.argv[3] == "repeatedly" and not Path("stop").exists():
        queue_misses(store, Path(sys.argv[2]))
"""


def digest(kind: str) -> str:
    families = registry.families().values()
    return sources_digest({each.name: each.source_hash() for each in families if each.kind == kind})


def miss(m: int = 1, layer: Layer = LAYER, calls: int = 1) -> Miss:
    return Miss(Problem(layer, m), DEVICE.name, DEVICE.arch, digest("cpu"), "default", calls)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "100% [mine].db.misses.jsonl"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def queued(store: Store) -> list[tuple[Problem, str, str, str]]:
    return [(job.problem, job.device, job.arch, job.source_hash) for job in Queue(store).jobs("queued")]


def queueing(db: Path, file: Path, how: str) -> subprocess.Popen[str]:
    """A process that has the database open and queues what is in the file, once or until there is `stop`."""
    command = [sys.executable, "-c", QUEUEING, str(db), str(file), how]
    process = subprocess.Popen(command, cwd=db.parent, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@contextmanager
def locked(db: Path) -> Iterator[None]:
    """Nothing is written to the database in here."""
    with closing(sqlite3.connect(db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def wait_until_aside(file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while file.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        os.sched_yield()


def test_what_a_model_ran_without_a_record_is_queued(tmp_path: Path) -> None:
    db = str(tmp_path / "mine.db")
    model = torch.nn.Sequential(AwqLinear(weight_of(LAYER))).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apply(model, db=db)
    model(tokens_of((3, LAYER.k), torch.float16))
    with Store.open(db) as store:
        assert queue_misses(store, miss_file(db)) == 1
        (job,) = Queue(store).jobs()
        mine = (Problem(LAYER, 4), DEVICE.name, DEVICE.arch, digest("cpu"))
        assert (job.problem, job.device, job.arch, job.source_hash) == mine
        assert 0 < job.priority < ASKED
        assert queue_misses(store, miss_file(db)) == 0
    assert [each.name for each in tmp_path.glob("*misses*")] == []


def test_calls_of_all_notes_times_what_each_may_save_is_the_priority(store: Store, file: Path) -> None:
    for each in (miss(calls=30), miss(2, calls=2), miss(1, WIDE, calls=3), miss(calls=50)):
        append(file, each)
    assert queue_misses(store, file) == 3
    priorities = {job.problem: job.priority for job in Queue(store).jobs()}
    expected = {Problem(LAYER, 1): 80, Problem(LAYER, 2): 2, Problem(WIDE, 1): 3}
    for problem, calls in expected.items():
        assert priorities[problem] == pytest.approx(calls * saved_us(problem, "default", []))
    assert [job.problem.layer for job in Queue(store).jobs()] == [WIDE, LAYER, LAYER]


def test_no_number_of_calls_comes_before_what_a_user_asks_for(store: Store, file: Path) -> None:
    append(file, miss(4096, WIDE, calls=4**31))
    queue_misses(store, file)
    ask(store, [Problem(LAYER, 1)], DEVICE, ASKED)
    assert [job.problem.m for job in Queue(store).jobs()] == [1, 4096]


def test_notes_of_other_devices_are_queued_for_these(store: Store, file: Path) -> None:
    append(file, replace(miss(), device=H100.name, arch=H100.arch, source_hash=digest("cuda")))
    assert queue_misses(store, file) == 1
    assert queued(store) == [(Problem(LAYER, 1), H100.name, H100.arch, digest("cuda"))]


def test_what_other_kernel_sources_ran_is_left_out(store: Store, file: Path) -> None:
    append(file, replace(miss(), source_hash="0123456789abcdef"))
    assert queue_misses(store, file) == 0
    assert not file.exists()


def test_what_has_a_record_by_now_is_left_out(tmp_path: Path, file: Path) -> None:
    store_records(
        tmp_path / "mine.db", DEVICE, {Problem(LAYER, 1): registry.default_config(Problem(LAYER, 1), DEVICE)}
    )
    append(file, miss(1))
    append(file, miss(2))
    with Store.open(str(tmp_path / "mine.db")) as store:
        assert queue_misses(store, file) == 1
        assert [problem.m for problem, *_ in queued(store)] == [2]


def test_a_queued_problem_is_not_queued_again_but_moves_up(store: Store, file: Path) -> None:
    append(file, miss())
    assert queue_misses(store, file) == 1
    append(file, miss(calls=5))
    assert queue_misses(store, file) == 0
    (job,) = Queue(store).jobs()
    assert job.priority == pytest.approx(5 * saved_us(job.problem, "default", []))


def test_no_file_or_a_foreign_one_is_no_job(store: Store, file: Path) -> None:
    assert queue_misses(store, file) == 0
    file.write_bytes(b"\0not ours\n{}\n")
    assert queue_misses(store, file) == 0
    assert list(file.parent.glob("*misses*")) == []


def test_notes_outlast_a_database_that_fails(store: Store, url: str, file: Path) -> None:
    append(file, miss())
    query(url, "ALTER TABLE job RENAME TO away")
    with pytest.raises(DatabaseError):
        queue_misses(store, file)
    query(url, "ALTER TABLE away RENAME TO job")
    append(file, miss(2))
    assert queue_misses(store, file) == 2
    assert list(file.parent.glob("*misses*")) == []


def test_notes_outlast_a_process_killed_while_it_queues_them(tmp_path: Path, file: Path) -> None:
    db = tmp_path / "mine.db"
    append(file, miss())
    with Store.open(str(db)) as store:
        with locked(db):
            process = queueing(db, file, "once")
            wait_until_aside(file, process)
            process.kill()
            process.wait(DEADLINE_S)
        assert queued(store) == []
        assert queue_misses(store, file) == 1


def test_a_note_that_comes_after_the_file_was_put_aside_is_queued(tmp_path: Path, file: Path) -> None:
    db = tmp_path / "mine.db"
    append(file, miss(1))
    append(tmp_path / "other", miss(2))
    with Store.open(str(db)) as store, file.open("ab", buffering=0) as opened:
        with locked(db):
            process = queueing(db, file, "once")
            wait_until_aside(file, process)
            opened.write((tmp_path / "other").read_bytes())
        assert process.wait(DEADLINE_S) == 0
        queue_misses(store, file)
        assert [problem.m for problem, *_ in sorted(queued(store))] == [1, 2]
    assert list(tmp_path.glob("*misses*")) == []


def test_models_write_while_daemons_read(tmp_path: Path, file: Path) -> None:
    db = tmp_path / "mine.db"
    with Store.open(str(db)) as store:
        daemons = [queueing(db, file, "repeatedly") for _ in range(2)]
        problems = {Problem(Layer(8 * n, 64, group_size=64), m) for n in range(1, 201) for m in (1, 2, 4, 8)}
        for problem in sorted(problems) * 2:
            assert append(file, replace(miss(), problem=problem))
        (tmp_path / "stop").touch()
        assert [daemon.wait(DEADLINE_S) for daemon in daemons] == [0, 0]
        queue_misses(store, file)
        assert {problem for problem, *_ in queued(store)} == problems
    assert list(tmp_path.glob("*misses*")) == []


def test_a_file_that_cannot_be_put_aside_is_an_error_that_names_it(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "mine.db")) as store, reachable_folder() as folder:
        file = folder / "notes"
        append(file, miss())
        folder.chmod(0o555)
        with as_ordinary_user(), pytest.raises(AutotuneError, match=f"{file}.*Permission denied"):
            queue_misses(store, file)


@pytest.mark.parametrize("aside", ["", ".1"])
def test_a_link_in_place_of_the_notes_is_an_error_and_not_followed(
    store: Store, file: Path, tmp_path: Path, aside: str
) -> None:
    append(tmp_path / "elsewhere", miss())
    link = file.with_name(file.name + aside)
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AutotuneError, match="cannot be taken"):
        queue_misses(store, file)
    assert link.is_symlink()
    assert (tmp_path / "elsewhere").exists()
    assert Queue(store).jobs() == []


def test_saved_time_follows_the_nearest_default_and_the_mean_share_of_its_bucket() -> None:
    near = replace(record(m=1), median_us=9.0, default_us=10.0)
    far = replace(record(m=64), median_us=5.0, default_us=20.0)
    problem, same_work = Problem(Layer(8192, 4096), 1), near.problem
    assert saved_us(same_work, "default", [near, far]) == pytest.approx(10.0 * 0.1)
    assert saved_us(problem, "default", [near, far]) == pytest.approx(
        1.0 * problem.moved_bytes / same_work.moved_bytes
    )
    assert saved_us(Problem(near.problem.layer, 2), "default", [near, far]) == pytest.approx(
        10.0 * (0.1 + 0.75) / 2, rel=0.01
    )


def test_something_may_always_be_saved_and_more_of_more_work() -> None:
    useless = replace(record(m=1), median_us=7.0, default_us=7.0)
    for records in ([], [useless]):
        small, large = (saved_us(Problem(Layer(n, 4096), 16), "default", records) for n in (256, 8192))
        assert 0 < small < large


def test_where_a_fit_knows_the_device_it_says_what_is_saved_by_what_ran(tmp_path: Path) -> None:
    """Calls of one problem by two answers: each has its own saving, and the job has their sum."""
    db, file = tmp_path / "mine.db", tmp_path / "notes"
    fast, slow = fitted.space()[0], fitted.space()[-1]
    write(fitted.fit_of({fast.family: 1.0}, (fast, slow)), own_fit(db, H200.name))
    predictor = predictor_for(H200, db)
    running = {"predicted": None, "default": registry.default_config(fitted.PROBLEM, H200)}
    expected = {source: saving_us(predictor, fitted.PROBLEM, config) for source, config in running.items()}
    for source, calls in (("predicted", 7), ("default", 5)):
        mine = (H200.name, H200.arch, digest("cuda"), source, calls)
        append(file, Miss(fitted.PROBLEM, *mine))
    with Store.open(db) as store:
        store.add_device(H200)
        assert queue_misses(store, file) == 1
        (job,) = Queue(store).jobs()
    assert job.priority == pytest.approx(7 * expected["predicted"] + 5 * expected["default"])
    assert job.priority != pytest.approx(12 * saved_us(fitted.PROBLEM, "default", []))


def test_asking_is_of_what_a_family_can_do(store: Store) -> None:
    problems = [Problem(LAYER, m) for m in (1, 2)]
    assert ask(store, problems, DEVICE, 5.0) == 2
    assert ask(store, problems, DEVICE, 7.0) == 0
    assert {job.priority for job in Queue(store).jobs()} == {7.0}
    with pytest.raises(DeviceError, match=r"can do m=1,n=64,k=64,.*fp32"):
        ask(store, [Problem(Layer(64, 64, group_size=64, dtype="fp32"), 1)], H200, 5.0)
    assert len(queued(store)) == 2


def test_of_what_is_asked_for_powers_of_two_come_first(store: Store) -> None:
    ask(store, [Problem(LAYER, m) for m in (16, 24, 32, 40)], DEVICE, ASKED)
    assert [job.problem.m for job in Queue(store).jobs()] == [16, 32, 24, 40]


def test_a_name_is_of_a_device_here_or_of_a_model_in_the_database(store: Store) -> None:
    assert device_here("cpu") == DEVICE
    assert device_here(H100.name) is None
    assert models_named(store, "cpu") == [DEVICE]
    with pytest.raises(DeviceError, match=r"'NVIDIA H100' is not.*none until a sweep or daemon ran"):
        models_named(store, H100.name)
    store.add_device(H100)
    assert models_named(store, H100.name) == [H100]
    with pytest.raises(DeviceError, match=r"'H100' is not.*one of the database's: 'NVIDIA H100'"):
        models_named(store, "H100")
    with pytest.raises(DeviceError, match="cuda:99"):
        models_named(store, "cuda:99")
