"""Which record answers a number of tokens, for every one that there is, against a rule written out anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from lookup_world import DEFAULT, ask, make_small_world, ship, store
from store_samples import H100, H200, LAYER, config, record

from autotune.families import registry
from autotune.records.lookup import Answer, Lookup
from autotune.serving.decide import decide
from autotune.values.errors import LayerError
from autotune.values.layer import BUCKETS, COARSE, Problem, bucket_of, buckets_for
from autotune.values.record import Record

POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
EVERY_M = range(1, 5001)


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_small_world(tmp_path, monkeypatch)


def recorded(*tokens: int, split_k: int = 1) -> list[Record]:
    """Records whose config says of which m they are."""
    return [record(m=m, best=config(tile_m=m, split_k=split_k)) for m in tokens]


def expected(m: int, own: set[int], shipped: set[int]) -> tuple[str, int]:
    """Source and m of the record that answers, where every power of two has one: by counting up from m."""
    for at in range(min(m, 4096), 4097):
        if at in own:
            return "exact", at
        if at in shipped:
            return "shipped", at
    raise AssertionError(m)


def found(answer: Answer) -> tuple[str, int]:
    return answer.source, answer.config["tile_m"]


def test_the_coarse_buckets_are_the_powers_of_two() -> None:
    assert COARSE == POWERS
    assert set(POWERS) < set(BUCKETS)
    assert list(BUCKETS) == sorted(set(BUCKETS))


def test_an_m_goes_from_its_bucket_to_the_next_power_of_two() -> None:
    for m in EVERY_M:
        last = next((power for power in POWERS if power >= m), 4096)
        assert buckets_for(m) == tuple(each for each in range(min(m, 4096), last + 1) if each in BUCKETS)
        assert bucket_of(m) == buckets_for(m)[0]
    with pytest.raises(LayerError, match="m=0 is not a number of tokens"):
        buckets_for(0)


@pytest.mark.parametrize(
    ("own", "shipped"),
    [
        (POWERS, ()),
        ((), POWERS),
        (BUCKETS, ()),
        (POWERS, BUCKETS),
        (BUCKETS, POWERS),
        ((*POWERS, 48, 56, 320), (40, 56, 1536)),
    ],
)
def test_every_m_is_answered_by_the_next_record(
    tmp_path: Path, database: Path, own: tuple[int, ...], shipped: tuple[int, ...]
) -> None:
    if own:
        store(database, *recorded(*own))
    if shipped:
        ship(tmp_path, *recorded(*shipped))
    lookup = Lookup(H200)
    for m in EVERY_M:
        answer = lookup.answer(Problem(LAYER, m))
        assert answer.problem == Problem(LAYER, m)
        assert found(answer) == expected(m, set(own), set(shipped)), m
    assert [each.problem.m for each in lookup.answers(LAYER)] == sorted({*own, *shipped})


def test_of_one_bucket_the_users_record_answers_and_a_finer_shipped_one_goes_before_his_coarser(
    tmp_path: Path, database: Path
) -> None:
    store(database, *recorded(48, 64, split_k=2))
    ship(tmp_path, *recorded(40, 48, 64))
    lookup = Lookup(H200)
    answers = {m: lookup.answer(Problem(LAYER, m)) for m in (33, 40, 41, 48, 49, 64)}
    assert {m: found(answer) for m, answer in answers.items()} == {
        33: ("shipped", 40),
        40: ("shipped", 40),
        41: ("exact", 48),
        48: ("exact", 48),
        49: ("exact", 64),
        64: ("exact", 64),
    }
    assert {answer.config["split_k"] for m, answer in answers.items() if m > 40} == {2}


def test_a_coarse_record_answers_with_its_times_and_says_which_it_is(database: Path) -> None:
    store(database, *recorded(64))
    answer = ask(m=40)
    assert (answer.median_us, answer.default_us) == (5.25, 7.75)
    assert answer.record is not None
    assert answer.record.problem == Problem(LAYER, 64)


def test_a_finer_record_that_is_stale_or_of_another_device_gives_way_to_the_coarse_one(
    database: Path,
) -> None:
    stale = replace(recorded(40)[0], source_hash="another kernel")
    store(database, stale, record(m=48, device=H100, best=config(9)), *recorded(64))
    assert [found(ask(m=m)) for m in (33, 40, 48, 64)] == [("exact", 64)] * 4


def test_without_a_record_the_coarse_bucket_answers_for_all_up_to_it(database: Path) -> None:
    """A finer record answers its own and what is below it, and nothing above."""
    store(database, *recorded(40))
    assert found(ask(m=37)) == ("exact", 40)
    for m in (41, 56, 64, 128):
        assert (ask(m=m).source, ask(m=m).config) == ("default", DEFAULT)
    assert [each.problem.m for each in Lookup(H200).answers(LAYER)] == sorted((*POWERS, 40))


def test_a_default_is_asked_for_at_powers_of_two_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    default = registry.default_config

    def noted(problem: Problem, *more: object) -> object:
        asked.append(problem.m)
        return default(problem, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "default_config", noted)
    lookup = Lookup(H200)
    for m in EVERY_M:
        lookup.answer(Problem(LAYER, m))
    assert sorted(asked) == list(POWERS)


def test_an_engine_is_told_of_the_answers_to_what_it_runs(database: Path) -> None:
    store(database, *recorded(1, 2, 4, 8, 16, 24, 32, 64))
    tokens = [bucket for bucket in BUCKETS if bucket <= 40]
    decision = decide(LAYER, Lookup(H200), tokens, "auto")
    assert (decision.taken, decision.sources) == (True, "exact m=1-64")
    lacking = decide(LAYER, Lookup(H200), BUCKETS, "auto")
    missing = "m=128,256,512,1024,2048,4096"
    assert lacking.reason == f"no record of NVIDIA H200 answers {missing}; sweep it with --serving"
