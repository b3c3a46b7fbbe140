"""Another engine's kernel in a race: verified, timed in the same rounds, never a winner or an obstacle."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import known_peers
import pytest
from command_line import PROGRAM, autotune
from databases import query
from real_families import CPU_FAMILY

from autotune.bench import measure as bench_measure
from autotune.bench.operands import Operands
from autotune.bench.peer import Peer
from autotune.bench.race import race
from autotune.checkpoints.shapes import Shape
from autotune.cli.explanation import fields, lines
from autotune.cli.sweep import _cells, _rows
from autotune.console.text import microseconds
from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.records.lookup import Lookup
from autotune.search import incremental
from autotune.search.recheck import recheck
from autotune.search.sweep import sweep
from autotune.search.tune import tune
from autotune.values.device import cpu_device
from autotune.values.extra import Extra
from autotune.values.layer import Layer, Problem

LAYER = Layer(n=128, k=256, group_size=64)
PROBLEM = Problem(LAYER, 4)


@pytest.fixture(scope="module")
def operands() -> Operands:
    return Operands.random(LAYER, cpu_device())


def tuned_with(operands, make):
    default, *others = registry.space(PROBLEM, cpu_device())[:3]
    return tune(PROBLEM, operands, [default, *others], {}, peer=make)


def test_it_is_timed_and_wins_nothing(operands):
    peer = known_peers.dense_peer(operands)
    tuned = tuned_with(operands, lambda: peer)
    ((name, median_us),) = tuned.record.evidence.peers
    assert name == known_peers.NAME
    assert median_us > 0
    assert peer.timed.calls > 0
    assert tuned.note == ""
    assert tuned.record.config.family == CPU_FAMILY.name
    assert {trial.config.family for trial in tuned.trials} == {CPU_FAMILY.name}


def test_it_is_timed_in_every_round_of_the_winner(operands, monkeypatch):
    counts = []

    def noting(runners, rounds, keep, is_over, beside):
        race(runners, rounds, keep, is_over, beside)
        counts.append((max(len(runner.samples_us) for runner in runners), len(beside[0].samples_us)))

    monkeypatch.setattr(bench_measure, "race", noting)
    tuned_with(operands, lambda: known_peers.dense_peer(operands))
    ((winner, peer),) = counts
    assert winner == peer > 3


def test_its_weights_exceed_the_last_cache(operands):
    copies = known_peers.dense_peer(operands).operands.copies
    assert sum(copy[0].nbytes for copy in copies) > 3 * cpu_device().l2_bytes
    assert len({copy[0].data_ptr() for copy in copies}) == len(copies)


def test_one_that_is_wrong_is_a_note(operands):
    tuned = tuned_with(operands, lambda: known_peers.dense_peer(operands, factor=1.01))
    assert tuned.record.evidence.peers == ()
    assert f"{known_peers.NAME} is wrong: out[" in tuned.note


def test_one_that_cannot_be_had_or_fails_is_a_note(operands):
    def missing() -> Peer:
        raise ValueError("no kernel can\nbe had")

    tuned = tuned_with(operands, missing)
    assert tuned.record.evidence.peers == ()
    assert tuned.note == "the other engine's kernel is not timed: ValueError: no kernel can"

    class Failing(known_peers.Call):
        def run(self, *_):
            raise AssertionError("shapes")

    peer = known_peers.dense_peer(operands)
    tuned = tuned_with(operands, lambda: Peer(peer.name, peer.operands, peer.checked, Failing()))
    assert tuned.record.evidence.peers == ()
    assert tuned.note == f"{known_peers.NAME} is not timed: AssertionError: shapes"


def test_one_that_crashes_costs_its_worker_and_nothing_else():
    default, *others = registry.space(PROBLEM, cpu_device())[:3]
    entry = known_peers.work_with_a_peer_that_crashes
    with LocalExecutor(cpu_device(), entry=entry, allow_busy=True) as executor:
        tuned = executor.tune(PROBLEM, [default, *others], {}, extra=Extra(peer=True))
        assert tuned.record is not None
        assert {trial.status for trial in tuned.trials} <= {"ok", "pruned"}
        assert "kernel is not timed: it ended its worker with exit code 3" in tuned.note


def test_a_record_without_a_peer_is_raced_again_in_short(store, monkeypatch):
    """By the default, the incumbent and the peer; and a recheck keeps what the record has."""
    with LocalExecutor(cpu_device(), entry=known_peers.work, allow_busy=True) as executor:
        (first,) = sweep([PROBLEM], store, [executor])
        (without,) = sweep([PROBLEM], store, [executor], extra=Extra(peer=True))
        assert without.resumed, "there is no vLLM"
        monkeypatch.setattr(incremental, "vllm_is_here", lambda: True)
        (again,) = sweep([PROBLEM], store, [executor])
        assert again.resumed, "nobody asked"
        (timed,) = sweep([PROBLEM], store, [executor], extra=Extra(peer=True))
        assert 1 <= timed.trials <= 2 < first.trials
        assert [name for name, _ in timed.record.evidence.peers] == [known_peers.NAME]
        rows = _rows([Shape((), LAYER)], Extra(peer=True))
        row = rows.row(PROBLEM, *_cells(timed, Extra(peer=True)))
        assert "   vLLM us  " in rows.head()
        assert f" {microseconds(timed.record.evidence.peers[0][1])} " in row
        (done,) = sweep([PROBLEM], store, [executor], extra=Extra(peer=True))
        assert done.resumed
        (rechecked,) = recheck([PROBLEM], store, [executor])
        assert [name for name, _ in rechecked.after.evidence.peers] == [known_peers.NAME]
    lookup = Lookup(cpu_device(), store.name)
    answer = lookup.answer(PROBLEM)
    assert answer.source == "exact"
    ((name, median_us),) = rechecked.after.evidence.peers
    explanation = lookup.explain(answer)
    assert f"in the same rounds: {name} {median_us:.2f} us" in lines(answer, explanation)
    assert fields(answer, explanation)["peers"] == [[name, median_us]]


def test_a_stale_record_leaves_its_successor_the_peer(store, monkeypatch):
    monkeypatch.setattr(incremental, "vllm_is_here", lambda: True)
    with LocalExecutor(cpu_device(), entry=known_peers.work, allow_busy=True) as executor:
        assert next(sweep([PROBLEM], store, [executor], extra=Extra(peer=True))).record is not None
        for table in ("record", "trial"):
            query(store.name, f"UPDATE {table} SET source_hash = '0123456789abcdef'")
        (again,) = sweep([PROBLEM], store, [executor])
    assert [name for name, _ in again.record.evidence.peers] == [known_peers.NAME]


def test_a_race_for_a_peer_that_is_not_to_be_had_leaves_the_record(store, monkeypatch):
    monkeypatch.setattr(incremental, "vllm_is_here", lambda: True)
    with LocalExecutor(
        cpu_device(), entry=known_peers.work_with_a_peer_that_crashes, allow_busy=True
    ) as executor:
        (first,) = sweep([PROBLEM], store, [executor])
        (again,) = sweep([PROBLEM], store, [executor], extra=Extra(peer=True))
    assert again.record == first.record == store.records(cpu_device(), PROBLEM)[-1]
    assert 1 <= again.trials <= 2
    assert "is not timed" in again.note


def sweep_with_an_engine(folder: Path, init: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line where a package is called vllm."""
    (folder / "vllm").mkdir(exist_ok=True)
    (folder / "vllm" / "__init__.py").write_text(init)
    command = (*PROGRAM, "sweep", "--device", "cpu", "--m", "1", "--db", "a.db", *arguments)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_an_engine_that_does_not_import_is_told_in_the_table_and_in_json(tmp_path):
    layer = ("--serving", "n=64,k=64,group_size=64")
    table = sweep_with_an_engine(tmp_path, "print('loud')", *layer)
    assert table.returncode == 0, table.stderr
    assert len(table.stdout.splitlines()) == 2
    assert "vLLM does not import (No module named 'vllm." in table.stdout
    shown = sweep_with_an_engine(tmp_path, "print('loud')", *layer, "--json")
    outcome = json.loads(shown.stdout)
    assert outcome["peers"] == []
    assert not outcome["resumed"]
    assert outcome["trials"] <= 2
    apart = sweep_with_an_engine(tmp_path, "raise SystemExit", *layer, "--json")
    assert json.loads(apart.stdout)["trials"] <= 2, apart.stderr


def test_where_no_engine_is_the_sweep_says_so(tmp_path):
    place = ("--device", "cpu", "--m", "1", "--db", "a.db")
    ended = autotune("sweep", *place, "--serving", "n=64,k=64,group_size=64", cwd=tmp_path)
    assert ended.returncode == 0
    assert "vLLM is not in this environment" in ended.stderr
