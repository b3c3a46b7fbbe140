"""Notes of what a model ran without a record, and that no trouble with them reaches the model."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runtime_tools import AwqLinear, store_records, tokens_of, weight_of
from store_samples import as_ordinary_user, reachable_folder

from autotune.families import registry
from autotune.models.apply import apply
from autotune.records.lookup import Lookup
from autotune.records.misses import LIMIT_BYTES, REPLAYS, Miss, Tally, append, miss_file, read
from autotune.runtime.linear import Int4Linear
from autotune.values.device import cpu_device
from autotune.values.layer import BUCKETS, COARSE, Layer, Problem
from autotune.values.record import sources_digest

LAYER = Layer(64, 64, group_size=64)
DEVICE = cpu_device()
MISS = Miss(Problem(LAYER, 1), "NVIDIA H200", "sm_90", "0123456789abcdef", "near", 3)
LINE = (
    '{"n": 64, "k": 64, "scheme": "int4-channel-zp-fp16", "m": 1,'
    ' "device": "NVIDIA H200", "arch": "sm_90",'
    ' "source_hash": "0123456789abcdef", "source": "near", "calls": 3}'
)
CALLING = """
import os, signal, sys, torch
from autotune.values.device import cpu_device
from autotune.values.layer import Layer
from autotune.layouts import random_weight
from autotune.runtime.linear import Int4Linear
weight = random_weight(Layer(64, 64, group_size=64), torch.Generator().manual_seed(0))
linear = Int4Linear.from_quantized(weight).eval()
for _ in range(100):
    linear(torch.ones(1, 64, dtype=torch.float16))
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""
APPENDING = """
import sys
from dataclasses import replace
from pathlib import Path
from autotune.values.layer import Layer, Problem
from autotune.records.misses import Miss, append
problem = Problem(Layer(64, 64, group_size=64), int(sys.argv[2]))
miss = Miss(problem, "NVIDIA H200", "sm_90", "0123456789abcdef", "near", 1)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    append(Path(sys.argv[1]), miss)
"""


def model_of(linears: int = 1) -> torch.nn.Sequential:
    return torch.nn.Sequential(*(AwqLinear(weight_of(LAYER, seed)) for seed in range(linears))).eval()


def applied(db: Path, linears: int = 1) -> torch.nn.Sequential:
    """A model that runs tuned linears, made without a warning but that of untuned ones."""
    model = model_of(linears)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="no config was measured")
        apply(model, db=str(db))
    return model


def run(model: torch.nn.Sequential, m: int, times: int = 1) -> None:
    for _ in range(times):
        model(tokens_of((m, LAYER.k), torch.float16))


def calls_in(file: Path) -> dict[int, int]:
    """Calls by bucket."""
    calls: Counter[int] = Counter()
    for miss in read(file):
        calls[miss.problem.m] += miss.calls
    return dict(calls)


def let_go(model: list[torch.nn.Sequential]) -> None:
    model.clear()
    gc.collect()


def appending(file: Path, m: int, times: int) -> subprocess.Popen[str]:
    """A process that is about to append, once it reads a line."""
    command = [sys.executable, "-c", APPENDING, str(file), str(m), str(times)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_note_is_a_line_that_reads_as_it_was(tmp_path: Path) -> None:
    assert append(tmp_path / "new folder" / "notes", MISS)
    assert (tmp_path / "new folder" / "notes").read_text() == LINE + "\n"
    assert list(read(tmp_path / "new folder" / "notes")) == [MISS]


def test_the_file_is_beside_the_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "mine.db"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert miss_file() == tmp_path / "mine.db.misses.jsonl"
    assert miss_file(str(tmp_path / "other.db")) == tmp_path / "other.db.misses.jsonl"
    own = tmp_path / "data" / "autotune" / "autotune.db.misses.jsonl"
    assert miss_file("postgresql://host/fleet") == own


def test_what_is_called_without_a_record_is_noted(tmp_path: Path) -> None:
    model = applied(tmp_path / "none.db", linears=2)
    file = miss_file(str(tmp_path / "none.db"))
    assert not file.exists()
    run(model, m=3)
    hashes = {family.name: family.source_hash() for family in registry.families_of(DEVICE)}
    assert {(each.problem, each.device, each.arch, each.source_hash, each.source) for each in read(file)} == {
        (Problem(LAYER, 4), DEVICE.name, DEVICE.arch, sources_digest(hashes), "default")
    }


def test_calls_of_every_linear_of_a_layer_are_counted_until_the_model_goes(tmp_path: Path) -> None:
    file = miss_file(str(tmp_path / "none.db"))
    models = [applied(tmp_path / "none.db", linears=2)]
    run(models[0], m=1, times=9)
    run(models[0], m=5000)
    assert calls_in(file) == {1: 16, 4096: 1}
    let_go(models)
    assert calls_in(file) == {1: 18, 4096: 2}


def test_what_a_graph_captured_counts_as_its_replays(tmp_path: Path) -> None:
    lookup = Lookup(DEVICE, str(tmp_path / "none.db"))
    answers = [lookup.answer(Problem(LAYER, bucket)) for bucket in COARSE]
    tally = Tally(tmp_path / "notes", "x", "0", answers)
    for _ in range(3):
        tally.calls[2] += 1
    for _ in range(5):
        tally.calls[2] += 1
        tally.capture(2)
    tally.note_all()
    noted = [miss.calls for miss in read(tmp_path / "notes")]
    assert sum(noted) == 3 + 5 * REPLAYS
    assert noted[0] == 3 + REPLAYS  # at once, because a process may be killed


def test_near_is_noted_and_a_hit_is_not(tmp_path: Path) -> None:
    db = tmp_path / "some.db"
    problem = Problem(LAYER, 1)
    store_records(db, DEVICE, {problem: registry.default_config(problem, DEVICE)})
    models = [applied(db)]
    for m in BUCKETS:
        run(models[0], m)
    let_go(models)
    sources = {miss.problem.m: miss.source for miss in read(miss_file(str(db)))}
    assert sources == {m: "near" if m <= 4 else "default" for m in COARSE[1:]}


def test_between_powers_of_two_the_larger_one_is_missed_unless_a_finer_record_answers(tmp_path: Path) -> None:
    db = tmp_path / "some.db"
    problem = Problem(LAYER, 40)
    store_records(db, DEVICE, {problem: registry.default_config(problem, DEVICE)})
    models = [applied(db)]
    for m in (33, 40, 41, 48, 64, 65, 300):
        run(models[0], m)
    let_go(models)
    assert calls_in(miss_file(str(db))) == {64: 3, 128: 1, 512: 1}


@pytest.mark.parametrize(("end", "calls"), [("finished", 100), ("killed", 64)])
def test_a_process_tells_all_at_its_end_and_a_killed_one_a_quarter(
    end: str, calls: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "mine.db"))
    ended = subprocess.run([sys.executable, "-c", CALLING, end], check=False)
    assert ended.returncode == (-signal.SIGKILL if end == "killed" else 0)
    assert calls_in(miss_file()) == {1: calls}


def test_processes_that_write_at_once_keep_each_line_whole(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    processes = [appending(file, m, 1500) for m in (1, 2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(file.read_text().splitlines()) == 3000
    assert calls_in(file) == {1: 1500, 2: 1500}


def test_a_writer_killed_at_any_time_spoils_no_line_of_others(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    process = appending(file, 1, 10**9)
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    mine = Miss(Problem(LAYER, 2), "NVIDIA H200", "sm_90", "0123456789abcdef", "default", 1)
    noted = sum(append(file, mine) for _ in range(200))
    process.kill()
    process.wait(60)
    assert calls_in(file).get(2, 0) == noted
    assert sum(calls_in(file).values()) == len(file.read_text().splitlines())


def test_the_file_is_bounded(tmp_path: Path) -> None:
    file = miss_file(str(tmp_path / "none.db"))
    file.write_text((LINE + "\n") * (LIMIT_BYTES // (len(LINE) + 1)))
    size = file.stat().st_size
    run(applied(tmp_path / "none.db"), m=1, times=20)
    assert file.stat().st_size == size
    assert not append(file, MISS)


def test_what_could_not_be_noted_is_noted_later(tmp_path: Path) -> None:
    file = miss_file(str(tmp_path / "none.db"))
    file.mkdir()
    model = applied(tmp_path / "none.db")
    run(model, m=1, times=3)
    file.rmdir()
    run(model, m=1)
    assert calls_in(file) == {1: 4}


def test_a_folder_that_cannot_be_written_troubles_no_model() -> None:
    with reachable_folder() as folder:
        folder.chmod(0o555)
        with as_ordinary_user():
            model = applied(folder / "none.db")
            run(model, m=1, times=5)
            missing = applied(folder / "no folder" / "none.db")
            run(missing, m=1)
        assert list(folder.iterdir()) == []


def test_a_pipe_that_no_one_reads_holds_no_one_up(tmp_path: Path) -> None:
    file = miss_file(str(tmp_path / "none.db"))
    os.mkfifo(file)
    run(applied(tmp_path / "none.db"), m=1)


def test_a_look_up_alone_notes_nothing(tmp_path: Path) -> None:
    lookup = Lookup(DEVICE, str(tmp_path / "none.db"))
    lookup.answer(Problem(LAYER, 1))
    Int4Linear.from_quantized(weight_of(LAYER), lookup=lookup)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "foreign",
    [
        LINE[:100],
        LINE + LINE,
        "\0" * 40,
        "",
        "7",
        "[]",
        "[" * 100_000,
        "\udcff",
        json.dumps(json.loads(LINE) | {"n": 63}),
        json.dumps(json.loads(LINE) | {"n": 2**40}),
        json.dumps(json.loads(LINE) | {"n": "64"}),
        json.dumps(json.loads(LINE) | {"k": 64.0}),
        json.dumps(json.loads(LINE) | {"m": 3}),
        json.dumps(json.loads(LINE) | {"m": True}),
        json.dumps(json.loads(LINE) | {"scheme": ["fp16"]}),
        json.dumps(json.loads(LINE) | {"device": "H200\0"}),
        json.dumps(json.loads(LINE) | {"device": None}),
        json.dumps(json.loads(LINE) | {"source": "exact"}),
        json.dumps(json.loads(LINE) | {"calls": 0}),
        json.dumps(json.loads(LINE) | {"calls": 10**300}),
        json.dumps(json.loads(LINE) | {"calls": 1.5}),
    ],
)
def test_a_line_that_is_torn_or_not_ours_is_passed_over(foreign: str, tmp_path: Path) -> None:
    text = f"{LINE}\n{foreign}\n{LINE}\n"
    (tmp_path / "notes").write_bytes(text.encode(errors="surrogateescape"))
    assert list(read(tmp_path / "notes")) == [MISS, MISS]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "notes"
    link.symlink_to(target)
    assert not append(link, MISS)
    assert not target.exists()
    target.write_text(LINE + "\n")
    assert not append(link, MISS)
    assert target.read_text() == LINE + "\n"
    with pytest.raises(OSError, match="symbolic"):
        list(read(link))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_a_regular_file_is_read(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "notes")
    assert not append(tmp_path / "notes", MISS)
    with pytest.raises(OSError, match="no file"):
        list(read(tmp_path / "notes"))


def test_no_more_is_read_than_the_file_may_grow_to(tmp_path: Path) -> None:
    lines = LIMIT_BYTES // (len(LINE) + 1)
    (tmp_path / "notes").write_text((LINE + "\n") * (lines + 10))
    assert len(list(read(tmp_path / "notes"))) == lines
