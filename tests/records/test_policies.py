"""Policies of look-up: the same bits with any other rows, the same bits at each run, the least energy."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from invariance import assert_batch_invariant
from lookup_world import PROBLEM, SmallFamily, make_small_world, store
from runtime_tools import AwqLinear, weight_of
from store_samples import H200, config, record

from autotune.cli import main
from autotune.families import registry
from autotune.families.gemm import CudaFamily
from autotune.models.apply import apply
from autotune.records.lookup import Lookup
from autotune.runtime.handle import origin_of
from autotune.runtime.linear import Int4Linear
from autotune.runtime.plans import plans_of
from autotune.values.device import cpu_device, find_device
from autotune.values.errors import ConfigError, DeviceError
from autotune.values.layer import BUCKETS, Layer, Problem
from autotune.values.policy import policy_in_force
from autotune.values.record import Evidence

LAYER = Layer(96, 512, group_size=128, dtype="fp32")


@pytest.fixture(autouse=True)
def _own_database(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "own.db"))


def with_energy(**joules: tuple[float, float, float]) -> Evidence:
    """Evidence of a race of configs that are named by their tile, as t16."""
    energy = tuple((str(config(int(name[1:]))), *measured) for name, measured in joules.items())
    rivals = ((str(config(32)), 5.5),)
    return Evidence(rounds=13, gain=(1.0, 1.0, 1.0), runners_up=rivals, energy=energy)


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    return make_small_world(tmp_path, monkeypatch)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("group_size", [32, 512])
def test_batch_invariant_rows_have_the_same_bits_with_any_others(dtype: str, group_size: int) -> None:
    layer = Layer(96, 512, group_size=group_size, dtype=dtype)
    lookup = Lookup(cpu_device(), policy="batch_invariant")
    assert_batch_invariant(layer, lookup, (1, 2, 3, 7, 16, 17, 64, 100, 300))


def test_the_fastest_configs_of_a_cpu_are_not_batch_invariant() -> None:
    """The assertion above can fail."""
    if cpu_device().arch != "x86_64_avx2":
        pytest.skip("only AVX2 has another kernel for one token")
    with pytest.raises(AssertionError, match="row 0"):
        assert_batch_invariant(LAYER, Lookup(cpu_device()), (1, 2))


def test_batch_invariant_configs_are_of_one_order_and_valid() -> None:
    for device, layer in ((H200, Layer(6144, 4096)), (H200, Layer(1032, 2048, group_size=64))):
        answers = Lookup(device, policy="batch_invariant").answers(layer)
        assert [answer.problem.m for answer in answers] == list(BUCKETS)
        families = [registry.family_of(answer.config) for answer in answers]
        orders = {
            family.order(answer.config, layer, device)
            for family, answer in zip(families, answers, strict=True)
        }
        assert len(orders) == 1
        assert None not in orders
        assert all(
            family.reject(each.config, each.problem, device) is None
            for family, each in zip(families, answers, strict=True)
        )
        assert len({answer.config.family for answer in answers}) > 1  # few tokens and many


@pytest.mark.usefixtures("small_world")
def test_where_no_family_is_batch_invariant_look_up_says_so() -> None:
    with pytest.raises(DeviceError, match="no kernel family of NVIDIA H200 is batch-invariant for n="):
        Lookup(H200, policy="batch_invariant").answer(PROBLEM)


def test_a_batch_invariant_kernel_that_cannot_be_made_is_no_default(monkeypatch) -> None:
    from autotune.runtime import making
    from autotune.values.errors import CompileError

    def broken(*_: object) -> None:
        raise CompileError("no compiler")

    monkeypatch.setattr(making.Maker, "_make", broken)
    lookup = Lookup(cpu_device(), policy="batch_invariant")
    with pytest.raises(CompileError, match="no compiler"):
        Int4Linear.from_quantized(weight_of(LAYER), lookup=lookup)


def test_deterministic_leaves_out_families_that_are_not(small_world, monkeypatch) -> None:
    best = config(16)
    store(small_world, record(best=best))
    assert Lookup(H200, small_world, policy="fast").answer(PROBLEM).config == best
    with pytest.raises(DeviceError):  # the only family has not said that it is
        Lookup(H200, small_world, policy="deterministic").answer(PROBLEM)
    monkeypatch.setattr(SmallFamily, "deterministic", True)
    answer = Lookup(H200, small_world, policy="deterministic").answer(PROBLEM)
    assert (answer.source, answer.config) == ("exact", best)


def test_who_derives_a_family_says_itself_that_it_is_deterministic() -> None:
    assert not CudaFamily.deterministic


def test_all_families_of_autotune_are_deterministic() -> None:
    assert all(family.deterministic for family in registry.families().values())


@pytest.mark.parametrize(
    ("evidence", "chosen", "median_us", "reason"),
    [
        (
            with_energy(t16=(4e-3, 3.9e-3, 4.1e-3), t32=(3e-3, 2.9e-3, 3.1e-3)),
            32,
            5.5,
            "it takes 3 mJ a call",
        ),
        (
            with_energy(t16=(4e-3, 3.9e-3, 4.1e-3), t32=(3.9e-3, 3.8e-3, 4e-3)),
            16,
            5.25,
            "no other takes less",
        ),
        (with_energy(t16=(4e-3, 3.9e-3, 4.1e-3)), 16, 5.25, "no other takes less"),
        (with_energy(), 16, 5.25, "its energy was not measured; to measure it: autotune sweep --energy"),
    ],
    ids=["less", "not for certain", "alone", "not measured"],
)
def test_efficient_takes_what_needs_the_least_energy(
    small_world, evidence: Evidence, chosen: int, median_us: float, reason: str
) -> None:
    store(small_world, replace(record(best=config(16)), evidence=evidence))
    answer = Lookup(H200, small_world, policy="efficient").answer(PROBLEM)
    assert (answer.source, answer.config, answer.median_us) == ("exact", config(chosen), median_us)
    assert reason in answer.reason
    assert Lookup(H200, small_world).answer(PROBLEM).config == config(16)


@pytest.mark.parametrize("strange", ["warp_drive:tile_m=8", "no config", "{family}:tile_m=8,split_k=7"])
def test_efficient_leaves_out_what_cannot_run_here(small_world, strange: str) -> None:
    best = config(16)
    energy = ((strange.format(family=best.family), 1e-3, 1e-3, 1e-3), (str(best), 4e-3, 4e-3, 4e-3))
    store(small_world, replace(record(best=best), evidence=replace(with_energy(), energy=energy)))
    answer = Lookup(H200, small_world, policy="efficient").answer(PROBLEM)
    assert (answer.config, answer.median_us) == (best, 5.25)
    assert "no other takes less" in answer.reason


def test_apply_and_its_handle_keep_the_policy() -> None:
    weight = weight_of(LAYER)
    model = torch.nn.Sequential(AwqLinear(weight))
    report = apply(model, policy="batch_invariant")
    assert (report.by_policy, report.default, report.untuned) == (len(report.layers[0].answers), 0, ())
    assert "by the policy" in str(report)
    plans = model[0].plans
    assert origin_of(plans.handle).policy == "batch_invariant"
    found = plans_of(plans.handle, -1)
    assert found.policy == "batch_invariant"


def test_the_environment_names_the_policy(monkeypatch) -> None:
    assert policy_in_force() == "fast"
    monkeypatch.setenv("AUTOTUNE_POLICY", "batch_invariant")
    linear = Int4Linear.from_quantized(weight_of(LAYER))
    assert {answer.source for answer in linear.plans.answers} == {"policy"}
    assert policy_in_force("efficient") == "efficient"
    monkeypatch.setenv("AUTOTUNE_POLICY", "fastest")
    with pytest.raises(ConfigError, match="AUTOTUNE_POLICY='fastest' is not one of fast, deterministic"):
        policy_in_force()
    with pytest.raises(ConfigError, match="policy='slow' is not one of"):
        apply(torch.nn.Sequential(), policy="slow")


def test_lookup_shows_what_a_policy_costs(capsys) -> None:
    asked = ["lookup", "--n", "96", "--k", "512", "--m", "1,64", "--device", "cpu"]
    assert main([*asked, "--policy", "batch_invariant", "--explain"]) == 0
    shown = capsys.readouterr().out
    assert "source: policy" in shown
    (cost,) = set(re.findall(r"estimated to take ([0-9.]+) times as long as the default ones", shown))
    assert float(cost) > 1.05  # to dequantise into the cache is much for one token
    assert main([*asked, "--policy", "slow"]) == 2


def test_misses_of_a_policy_are_no_jobs() -> None:
    lookup = Lookup(find_device("cpu"), policy="batch_invariant")
    answers = lookup.answers(LAYER, (1, 16))
    assert lookup.tally(answers).missed == [False, False]
    assert Lookup(find_device("cpu")).tally(Lookup(find_device("cpu")).answers(LAYER, (1,))).missed == [True]
    assert lookup.answer(Problem(LAYER, 5000)).problem.m == 5000
