"""A fit chooses what is fastest by the timings it was made from, and is silent where it knows nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from command_line import autotune
from places import ROOT
from store_samples import ENVIRONMENT, H100

from autotune.cli import main
from autotune.families import registry
from autotune.prediction.boosting import Growth
from autotune.prediction.files import own_fit
from autotune.prediction.fit import Choices, Fit, read, write
from autotune.prediction.fitting import Timing, make
from autotune.prediction.predictor import Predictor
from autotune.prediction.timings import of_records, of_store
from autotune.records.lookup import Lookup
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.errors import DatabaseError
from autotune.values.layer import BUCKETS, Layer, Problem
from autotune.values.record import Record, Trial

H200 = Device("cuda", 0, "NVIDIA H200", "sm_90", 132, 62914560, 232448, 150109880320)
SIZES = ((4096, 4096), (8192, 4096), (12288, 4096), (4096, 8192), (6144, 6144), (16384, 4096))
UNSEEN = Problem(Layer(n=10240, k=4096, group_size=128), 16)
RACED = registry.default_config(UNSEEN, H200).family
"""The family whose whole space races; of others the default does at most."""
QUICK = Growth(trees=60, depth=4, rate=0.15)


def took_us(problem: Problem, config: Config) -> float:
    """A world where the raced family's estimates are wrong: more stages help, and slices of k cost."""
    estimate = registry.family_of(config).estimate(config, problem, H200)
    if config.family != RACED:
        return 2 * estimate
    return estimate * (1.5 - 0.1 * config["stages"]) * (1 + 0.2 * math.log2(config["split_k"]))


@cache
def timings(m: int = 16) -> tuple[Timing, ...]:
    problems = [Problem(Layer(n=n, k=k, group_size=128), m) for n, k in SIZES]
    return tuple(
        Timing(problem, config, took_us(problem, config))
        for problem in problems
        for config in registry.space(problem, H200)
    )


@pytest.fixture(scope="module")
def fit() -> Fit:
    return make(timings(), H200, QUICK)


def test_it_predicts_times_of_a_layer_that_was_not_timed(fit: Fit) -> None:
    space = [config for config in registry.space(UNSEEN, H200) if config.family == RACED]
    expected = Predictor(fit, H200).times_us([(UNSEEN, config) for config in space])
    ratios = [us / took_us(UNSEEN, config) for us, config in zip(expected, space, strict=True)]
    assert sorted(ratios)[len(ratios) // 2] == pytest.approx(1, abs=0.03)
    assert all(0.85 < ratio < 1.18 for ratio in ratios)


def test_it_chooses_near_the_best_of_the_whole_space(fit: Fit) -> None:
    best = min(took_us(UNSEEN, config) for config in registry.space(UNSEEN, H200))
    found = Predictor(fit, H200).best(UNSEEN.layer, BUCKETS)
    assert list(found) == [16]
    assert took_us(UNSEEN, found[16].config) <= 1.03 * best
    assert found[16].low_us <= found[16].us <= found[16].high_us
    default = registry.default_config(UNSEEN, H200)
    assert took_us(UNSEEN, default) > 1.1 * best


def test_the_own_default_is_chosen_where_no_other_size_has_what_is_as_fast(fit: Fit) -> None:
    space = [config for config in registry.space(UNSEEN, H200) if config.family == RACED]
    *_, slowest = Predictor(fit, H200).ordered(UNSEEN, space)
    default = registry.default_config(UNSEEN, H200)
    assert slowest != default
    elsewhere = Choices.of({UNSEEN.m: {(UNSEEN.layer.n, UNSEEN.layer.k): (slowest,)}})
    found = Predictor(replace(fit, choices=elsewhere), H200).ranked(UNSEEN)
    assert [each.config for each in found] == [default, slowest]
    named = Choices.of({UNSEEN.m: {(UNSEEN.layer.n, UNSEEN.layer.k): (default,)}})
    (found,) = Predictor(replace(fit, choices=named), H200).ranked(UNSEEN)
    assert found.config == default


def test_a_family_that_the_fit_has_never_seen_has_its_plain_estimate(fit: Fit) -> None:
    (config,) = (each for each in registry.space(UNSEEN, H200) if each.family != RACED)
    assert config.family not in fit.families
    estimate = registry.family_of(config).estimate(config, UNSEEN, H200)
    assert Predictor(fit, H200).times_us([(UNSEEN, config)]) == pytest.approx([estimate])
    assert Predictor(None, H200).times_us([(UNSEEN, config)]) == pytest.approx([estimate])


def test_candidates_come_in_the_order_of_their_times(fit: Fit) -> None:
    space = registry.space(UNSEEN, H200)
    ordered = Predictor(fit, H200).ordered(UNSEEN, space)
    assert sorted(map(str, ordered)) == sorted(map(str, space))
    half = ordered[: len(space) // 2]
    least = min(took_us(UNSEEN, config) for config in space)
    assert min(took_us(UNSEEN, config) for config in half) <= 1.01 * least


@pytest.mark.parametrize("changed", ["kernel", "estimate_us"])
def test_a_family_whose_kernel_or_estimate_has_changed_goes_without(fit: Fit, changed: str) -> None:
    family = fit.families[RACED]
    probe = replace(family.probes[0], **{changed: "0123" if changed == "kernel" else 1.0})  # type: ignore[arg-type]
    other = replace(fit, families={**fit.families, RACED: replace(family, probes=(probe,))})
    assert RACED in Predictor(fit, H200).families
    assert RACED not in Predictor(other, H200).families
    assert Predictor(other, H200).best(UNSEEN.layer, BUCKETS) == {}


def test_five_timings_are_too_few() -> None:
    with pytest.raises(DatabaseError, match=r"NVIDIA H200: 5 timed configs .* needs 200; run autotune sweep"):
        make(timings()[:5], H200)


def test_a_file_says_the_same(fit: Fit, tmp_path: Path) -> None:
    write(fit, tmp_path / "some.fit.json")
    again = read(tmp_path / "some.fit.json", H200)
    assert again is not None
    before, after = (Predictor(each, H200).best(UNSEEN.layer, BUCKETS) for each in (fit, again))
    assert after == before
    assert read(tmp_path / "some.fit.json", H100) is None
    assert read(tmp_path / "none.fit.json", H200) is None


DAMAGE: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "no object": lambda _: "[]",
    "format": lambda text: text.replace('"format": 1', '"format": 2'),
    "config": lambda text: text.replace(f"{RACED}:", "?:", 1),
    "spread": lambda text: text.replace('"spread": [', '"spread": [-'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_does_not_read_is_warned_of_and_the_default_answers(
    fit: Fit, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.prediction.files.shipped", lambda _: tmp_path / "shipped")
    path = own_fit(tmp_path / "my.db", H200.name)
    write(fit, path)
    path.write_text(DAMAGE[damage](path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.warns(
        UserWarning, match=r"my\.db\.nvidia-h200\.fit\.json does not read .*run autotune fit again"
    ):
        answer = Lookup(H200, tmp_path / "my.db").answer(UNSEEN)
    assert answer.source == "default"


def test_look_up_says_what_it_expects(fit: Fit, tmp_path: Path) -> None:
    write(fit, own_fit(tmp_path / "my.db", H200.name))
    lookup = Lookup(H200, tmp_path / "my.db")
    answer = lookup.answer(UNSEEN)
    best = Predictor(fit, H200).best(UNSEEN.layer, [16])[16]
    assert (answer.source, answer.config, answer.prediction) == ("predicted", best.config, best)
    assert (answer.median_us, answer.record) == (None, None)
    assert f"no record of this problem; {best.us:.1f} us expected, 8 of 10" in answer.reason
    assert lookup.answer(replace(UNSEEN, m=13)).config == best.config
    assert lookup.answer(replace(UNSEEN, m=64)).source == "default"
    assert lookup.alternatives(answer)[0] == answer
    other = Device("cuda", 0, "NVIDIA Unknown", "sm_90", 132, 62914560, 232448, 150109880320)
    assert Lookup(other, tmp_path / "my.db").answer(UNSEEN).source == "default"


def stored(
    path: Path, some: tuple[Timing, ...], driver: str = "CUDA 13.0", kernel: str | None = None
) -> Store:
    """A database with trials of these timings; each problem has a record, of its first."""
    store = Store.open(path)
    sweep = store.begin_sweep(H200, replace(ENVIRONMENT, driver=driver), {})
    problems = {each.problem: each for each in reversed(some)}
    for problem, first in problems.items():
        trials = [
            Trial(each.problem, each.config, "ok", each.us, each.us, each.us, (each.us,), mode="model")
            for each in some
            if each.problem == problem
        ]
        named = [
            replace(t, source_hash=kernel or registry.kernel_hash(t.config, problem, H200)) for t in trials
        ]
        times = (first.us, first.us, first.us, first.config, first.us)
        today = registry.kernel_hash(first.config, problem, H200)
        record = Record(
            problem, H200.name, H200.arch, first.config, *times, today, "2026-01-01T00:00:00+00:00"
        )
        store.add_result(sweep, named, record, None)
    return store


def test_trials_of_another_driver_count_and_of_other_kernels_do_not(tmp_path: Path) -> None:
    some = timings()[:8]
    with stored(tmp_path / "driver.db", some, driver="CUDA 12.1") as store:
        assert set(of_store(store, H200)) == set(some)
    with stored(tmp_path / "kernel.db", some, kernel="aaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb") as store:
        assert of_store(store, H200) == []


def test_records_of_another_device_say_nothing(tmp_path: Path) -> None:
    with stored(tmp_path / "some.db", timings()[:8]) as store:
        records = store.records(H200)
    assert of_records(records, H100) == []


def test_the_command_refuses_a_database_with_five_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever else autotune ships of the device: a fit of that is shipped too."""
    stored(tmp_path / "five.db", timings()[:5]).close()
    assert main(["fit", "--db", str(tmp_path / "five.db"), "--out", str(tmp_path / "fits")]) == 1
    shown = capsys.readouterr().err
    assert "NVIDIA H200: 5 timed configs of today's kernels; a fit needs 200" in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "fits").exists()


def test_the_command_says_where_there_is_nothing_to_fit(tmp_path: Path) -> None:
    shown = autotune("fit", "--db", "empty.db", cwd=tmp_path)
    assert shown.returncode == 1
    assert "has no device; run autotune sweep first" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_the_shipped_fits_are_of_todays_kernels_and_estimates() -> None:
    """Else `autotune fit --out db` is due."""
    files = list((ROOT / "db").glob("*.fit.json"))
    assert files
    for path in files:
        assert json.loads(path.read_text())["device"] == H200.name
        fit = read(path, H200)
        assert fit is not None
        assert set(Predictor(fit, H200).families) == set(fit.families)
