"""What `benchmarks/estimates.py` concludes from the trials of a database."""

import pytest
from places import BENCHMARKS
from store_samples import ENVIRONMENT, H200

from autotune.families import registry
from autotune.store.store import Store
from autotune.values.layer import Layer, Problem
from autotune.values.record import Record, Trial

PROBLEM = Problem(Layer(7168, 5120), 512)


def sweep(path, times):
    """A sweep of the problem that timed these configs, the first of which won."""
    trials = [Trial(PROBLEM, config, "ok", us, us, us, (us,)) for config, us in times.items()]
    (best, us), (default, default_us) = list(times.items())[:2]
    record = Record(
        PROBLEM,
        H200.name,
        H200.arch,
        best,
        us,
        us,
        us,
        default,
        default_us,
        "hash",
        "2026-11-29T00:00:00+00:00",
    )
    with Store.open(str(path)) as store:
        number = store.begin_sweep(H200, ENVIRONMENT, {})
        store.add_result(number, trials, record, None)
        store.finish_sweep(number, "finished")


def test_defaults_are_compared_with_the_best_of_all_and_of_their_family(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from estimates import defaults_of, table

    chosen = registry.default_config(PROBLEM, H200)
    own = registry.family_of(chosen)
    better = next(config for config in own.space(PROBLEM, H200) if config != chosen)
    defaults = (family.default(PROBLEM, H200) for family in registry.families_of(H200) if family is not own)
    best = next(filter(None, defaults))
    sweep(tmp_path / "swept.db", {best: 40.0, better: 44.0, chosen: 50.0})
    found = defaults_of(str(tmp_path / "swept.db"), None)
    losses = {each.family: each.loss for each in found}
    assert losses == pytest.approx({"all": 0.25, best.family: 0.0, own.name: 50 / 44 - 1})
    lines = [line.split()[:5] for line in table(found)][1:]
    assert ["all", "512", "1/1", "25.00%", "25.00%"] in lines
    assert [own.name, ">32", "1/1", "13.64%", "13.64%"] in lines
    assert defaults_of(str(tmp_path / "swept.db"), "llama7b") == []


def test_a_default_that_was_not_timed_is_counted_apart(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from estimates import defaults_of, table

    chosen = registry.default_config(PROBLEM, H200)
    others = [config for config in registry.space(PROBLEM, H200) if config != chosen][:2]
    sweep(tmp_path / "swept.db", dict(zip(others, (40.0, 44.0), strict=True)))
    found = defaults_of(str(tmp_path / "swept.db"), None)
    assert found[0].family == "all"
    assert found[0].took_us is None
    assert found[0].best == others[0]
    assert not [line for line in table(found) if line.split()[0] == "all"]
