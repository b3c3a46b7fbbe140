"""Which linears autotune takes of vLLM when it is to take those that records answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("vllm")

from asking import LAYER, config_of, start

import autotune
from autotune.records.lookup import Lookup
from autotune.serving.vllm import engine
from autotune.serving.vllm.kernel import AutotuneLinearKernel
from autotune.values.device import find_device
from autotune.values.layer import BUCKETS, COARSE, Layer, Problem, bucket_of
from autotune.values.record import Evidence


class World:
    """Records of this device for some buckets of the layer, in the place of a database."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lookup = Lookup(find_device("cpu"), None)
        self.noted: dict[int, Any] = {}
        self.peers: dict[int, float] = {}
        monkeypatch.setattr("autotune.serving.vllm.kernel.default_lookup", lambda *_: self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lookup, name)

    def answers(self, layer: Layer, tokens: Any) -> tuple[Any, ...]:
        return tuple(
            self.noted.get(m) or self._lookup.answer(Problem(layer, m)) for m in COARSE if m in tokens
        )

    def note(self, m: int, source: str) -> None:
        default = self._lookup.answer(Problem(LAYER, m))
        own = source in ("exact", "shipped")
        record = recorded(default, self._lookup.device.name) if own else None
        self.noted[m] = replace(
            default, source=source, record=record, median_us=10.0 if own else None, default_us=None
        )

    def explain(self, answer: Any) -> Any:
        us = self.peers.get(answer.problem.m)
        peers = () if us is None else (("vllm:Other", us),)
        evidence = Evidence(13, (1.0, 1.0, 1.0), peers=peers)
        return autotune.records.explanation.Explanation(replace(answer.record, evidence=evidence), None)


def recorded(answer: Any, device: str) -> Any:
    from autotune.values.record import Record

    times = (10.0, 9.9, 10.1)
    return Record(answer.problem, device, "x", answer.config, *times, answer.config, 10.0, "0", "2026-11-29")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(monkeypatch)
    monkeypatch.setattr("autotune.serving.vllm.kernel.plans_for", lambda *_: None)
    return made


def test_auto_takes_what_records_of_this_device_answer(
    monkeypatch: pytest.MonkeyPatch, world: World, said: list[str]
) -> None:
    start(monkeypatch, "auto")
    for m in engine.buckets():
        world.note(m, "predicted" if m > 64 else "exact")
    assert AutotuneLinearKernel.can_implement(config_of()) == (True, None)
    assert said == [f"autotune serves {LAYER}: exact m=1-64, predicted m=128-{engine.buckets()[-1]}"]


def test_auto_leaves_what_they_do_not(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    start(monkeypatch, "auto")
    for m in engine.buckets():
        if m not in (1, 16):
            world.note(m, "exact")
    taken, reason = AutotuneLinearKernel.can_implement(config_of())
    assert not taken
    assert "answers m=1,16; sweep it with --serving" in str(reason)


@pytest.mark.parametrize(("times", "taken"), [({1: 20.0, 64: 8.0}, True), ({1: 11.0, 64: 8.0}, False)])
def test_auto_leaves_where_a_sweep_saw_vllm_win(
    monkeypatch: pytest.MonkeyPatch, world: World, times: dict[int, float], taken: bool
) -> None:
    """Ours took 10 us at each: the other kernel took 2 and 0.8 times that, or 1.1 and 0.8 times."""
    start(monkeypatch, "auto")
    for m in engine.buckets():
        world.note(m, "exact")
    world.peers = times
    answer = AutotuneLinearKernel.can_implement(config_of())
    assert answer == (True, None) if taken else answer == (False, "vllm:Other was faster in a sweep")


def test_the_buckets_are_those_that_the_engine_runs(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.scheduler_config, "max_num_batched_tokens", 500)
    monkeypatch.setattr(running.compilation_config, "cudagraph_capture_sizes", [1, 2, 4, 8, 16])
    assert engine.buckets() == BUCKETS[: BUCKETS.index(512) + 1]
    monkeypatch.setattr(running.compilation_config, "cudagraph_capture_sizes", [1, 520])
    assert engine.buckets()[-1] == bucket_of(520)
