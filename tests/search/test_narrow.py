"""What finer buckets race: what did best at the powers of two around them, and nothing twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from lookup_world import SmallFamily
from store_samples import ENVIRONMENT, EVIDENCE, FAMILY, H200, RIVAL, record
from undisturbed import work

from autotune.daemon.tuner import Tuner
from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.search import sweep as sweep_module
from autotune.search.environment import current_environment
from autotune.search.fleet import Task
from autotune.search.incremental import neighbours
from autotune.search.narrow import worth_racing
from autotune.search.sweep import sweep
from autotune.search.todo import task_to_do
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device, cpu_device
from autotune.values.job import Job
from autotune.values.layer import Layer, Problem
from autotune.values.record import DEFAULT_MODE, Record

LAYER = Layer(n=256, k=512, group_size=64)
CPU = cpu_device()
COARSE, FINER = [Problem(LAYER, m) for m in (16, 32)], Problem(LAYER, 24)
TILES = {32: (32,), 40: (16, 40, 64), 64: (64,)}


def config(tile_m: int, stages: int = 3, split_k: int = 1, family: str = FAMILY) -> Config:
    return Config.of(family, tile_m=tile_m, stages=stages, split_k=split_k)


class Tiled(SmallFamily):
    """A family with tiles that suit m, three splits of each, and deeper stages for one."""

    def space(self, problem: Problem, device: Device) -> list[Config]:  # noqa: ARG002
        configs = [config(tile, 3, split_k) for split_k in (1, 2, 4) for tile in TILES[problem.m]]
        return [*configs, *(config(tile, 4, 4) for tile in TILES[problem.m])]

    def reject(self, config: Config, problem: Problem, device: Device) -> str | None:
        return None if config in self.space(problem, device) else "it is not there"

    def default(self, problem: Problem, device: Device) -> Config | None:
        return self.space(problem, device)[0]


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "families", lambda: {FAMILY: Tiled(FAMILY)})


def won(m: int, *best: Config) -> Record:
    """A record whose evidence has the configs in this order."""
    winner, *rivals = best
    runners_up = tuple((str(each), 9.0) for each in rivals)
    evidence = replace(EVIDENCE, ties=(), runners_up=runners_up)
    return replace(record(m=m, best=winner), mode=DEFAULT_MODE, evidence=evidence)


def raced(*records: Record) -> list[Config]:
    return worth_racing(Problem(records[0].problem.layer, 40), H200, records)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        # The same but for the tile, in the two that 40 fills best, the default and the simpler ones first.
        ([config(32, 3, 2)], [config(64, 3, 2)], [(16, 3, 2), (40, 3, 2)]),
        ([config(32, 3, 2)], [config(64, 4, 4)], [(16, 3, 2), (40, 3, 2), (16, 4, 4), (40, 4, 4)]),
        ([config(32, 3, 1)], [config(64, 3, 1)], [(40, 3, 1)]),
        # Of the rest of the family the nearest: in fewer tunables, then by ratio.
        ([config(32, 4, 2)], [config(64, 3, 8)], [(16, 3, 2), (40, 3, 2), (16, 3, 4), (40, 3, 4)]),
        # Three of each, and no other family's.
        (
            [config(32, 3, 1, RIVAL)],
            [config(64, 3, s) for s in (2, 1, 1, 4)],
            [(40, 3, 1), (16, 3, 2), (40, 3, 2)],
        ),
    ],
)
def test_what_did_best_around_is_fitted_to_m(
    below: list[Config], above: list[Config], expected: list[tuple[int, int, int]]
) -> None:
    assert raced(won(32, *below), won(64, *above)) == [config(16), *(config(*values) for values in expected)]


@pytest.mark.usefixtures("tiled")
def test_only_current_neighbours_of_the_mode_teach_and_only_a_finer_bucket(store: Store) -> None:
    problem = Problem(record().problem.layer, 40)

    def around(mode: str = DEFAULT_MODE, m: int = 40) -> list[int]:
        found = neighbours(Problem(problem.layer, m), H200, store, ENVIRONMENT, mode)  # type: ignore[arg-type]
        return [each.problem.m for each in found]

    def add(each: Record) -> None:
        store.add_result(store.begin_sweep(H200, ENVIRONMENT, {}), [], each, None)

    assert around() == []
    add(won(32, config(32)))
    assert around() == []
    add(replace(won(64, config(64)), source_hash="of another kernel"))
    assert around() == []
    add(won(64, config(64)))
    assert around() == [32, 64]
    assert around("server") == []
    assert around(m=64) == []


def timed(store: Store, problem: Problem) -> list[Config]:
    return [trial.config for trial in store.trials(problem, CPU)]


def records_of(store: Store, problems: Sequence[Problem]) -> list[Record]:
    return [each for problem in problems for each in store.records(CPU, problem)]


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    with LocalExecutor(CPU, entry=work, allow_busy=True) as local:
        yield local


def test_a_sweep_races_few_configs_of_a_finer_bucket_and_none_of_them_twice(
    store: Store, executor: LocalExecutor
) -> None:
    outcomes = list(sweep([FINER, *COARSE], store, [executor]))
    assert [each.problem for each in outcomes] == [*COARSE, FINER]
    around = records_of(store, COARSE)
    expected = worth_racing(FINER, CPU, around)
    assert timed(store, FINER) == expected
    assert len(expected) <= 1 + 2 * 3
    (found,) = records_of(store, [FINER])
    for each in (*around, found):
        assert each.evidence is not None
        assert each.evidence.candidates == len(timed(store, each.problem))
        assert each.evidence.learned_from == ((16, 32) if each is found else ())
    again = list(sweep([FINER, *COARSE], store, [executor]))
    assert [each.resumed for each in again] == [True] * 3
    assert timed(store, FINER) == expected


def test_finer_buckets_are_looked_up_once_and_while_other_layers_are_tuned(
    store: Store, executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, Problem]] = []

    def noting(problem: Problem, *others: Any) -> Task | None:
        events.append(("looked up", problem))
        return task_to_do(problem, *others)

    monkeypatch.setattr(sweep_module, "task_to_do", noting)
    layers = [LAYER, Layer(n=128, k=512, group_size=64)]
    problems = [Problem(layer, m) for layer in layers for m in (16, 24, 32)]
    for outcome in sweep(problems, store, [executor]):
        events.append(("done", outcome.problem))
    looked_up = [problem for what, problem in events if what == "looked up"]
    assert sorted(looked_up) == sorted(problems)
    done = [problem for what, problem in events if what == "done" and problem.m != 24]
    first, last = Problem(done[0].layer, 24), done[-1]
    assert first.layer != last.layer
    assert events.index(("looked up", first)) < events.index(("done", last))


def test_what_is_done_before_a_sweep_keeps_no_device_waiting(
    store: Store, executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finer buckets of a layer whose powers of two are stored are looked up when devices are at others."""
    list(sweep(COARSE, store, [executor]))
    events: list[Problem | str] = []

    def noting(problem: Problem, *others: Any) -> Task | None:
        events.append(problem)
        return task_to_do(problem, *others)

    monkeypatch.setattr(sweep_module, "task_to_do", noting)
    monkeypatch.setattr(executor, "start", lambda start=executor.start: (events.append("start"), start()))
    new = [Problem(Layer(n=128, k=512, group_size=64), m) for m in (16, 32)]
    assert len(list(sweep([FINER, *COARSE, *new], store, [executor]))) == 5
    assert events.index("start") < events.index(FINER)


def test_without_neighbours_a_finer_bucket_races_its_whole_space_and_that_is_enough_later(
    store: Store, executor: LocalExecutor
) -> None:
    (first,) = sweep([FINER], store, [executor])
    assert first.record is not None
    assert first.record.evidence is not None
    assert first.record.evidence.learned_from == ()
    assert set(timed(store, FINER)) == set(registry.candidates(FINER, CPU))
    outcomes = {each.problem: each for each in sweep([*COARSE, FINER], store, [executor])}
    assert outcomes[FINER].resumed
    assert outcomes[FINER].record == first.record


def test_what_has_become_the_best_around_races_against_the_stored_winner(
    store: Store, executor: LocalExecutor
) -> None:
    default, first, second, *_ = registry.candidates(FINER, CPU)

    def best_around(which: Config, at: int) -> None:
        for problem in COARSE:
            source = registry.kernel_hash(which, problem, CPU)
            made = replace(won(problem.m, config(1)), problem=problem, device=CPU.name, arch=CPU.arch)
            made = replace(made, config=which, source_hash=source)
            made = replace(made, created_at=f"2026-01-01T00:00:0{at}+00:00")
            store.add_result(store.begin_sweep(CPU, current_environment(CPU), {}), [], made, None)

    best_around(first, at=1)
    (outcome,) = sweep([FINER], store, [executor])
    assert timed(store, FINER) == [default, first]
    assert outcome.record is not None
    best_around(second, at=2)
    (again,) = sweep([FINER], store, [executor])
    assert not again.resumed
    assert set(timed(store, FINER)[2:]) == {default, outcome.record.config, second}
    (last,) = sweep([FINER], store, [executor])
    assert last.resumed


def test_a_daemon_learns_as_a_sweep_does(store: Store, executor: LocalExecutor) -> None:
    list(sweep(COARSE, store, [executor]))
    tuner = Tuner(executor)
    job = Job(1, FINER, CPU.name, CPU.arch, "", 1.0, "running", 1, None, None, 0.0, None, 0.0)
    plan = tuner.plan(job, store)
    assert list(plan.task.candidates) == worth_racing(FINER, CPU, records_of(store, COARSE))
    result = tuner.tune(job, plan)
    assert result.winner is not None
    assert result.winner.evidence is not None
    assert result.winner.evidence.learned_from == (16, 32)
