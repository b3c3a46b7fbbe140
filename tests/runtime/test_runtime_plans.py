"""Plans of a layer on the CPU family: which config runs when, what is shared, what has no kernel."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from real_families import CPU_FAMILY
from runtime_tools import assert_is_linear, store_records, tokens_of, weight_of

from autotune.families import registry
from autotune.families.protocol import Family, Plan
from autotune.jit.unit import Unit
from autotune.prediction.files import own_fit
from autotune.prediction.fit import Choices, FamilyFit, Fit, write
from autotune.prediction.forest import Forest
from autotune.records.lookup import Lookup
from autotune.runtime import making
from autotune.runtime.linear import Int4Linear
from autotune.runtime.plans import LayerPlans, default_lookup, device_of, plans_for, renew_plans
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device, cpu_device
from autotune.values.errors import CompileError, DeviceError, LaunchError
from autotune.values.layer import BUCKETS, COARSE, Layer, Problem, bucket_of
from autotune.values.record import Binary, Environment

LAYER = Layer(512, 1024)


def distinct_configs(count: int) -> list[Config]:
    """Configs that are valid for every bucket of LAYER, none of them a default."""
    device = cpu_device()
    spaces = [set(registry.space(Problem(LAYER, bucket), device)) for bucket in BUCKETS]
    defaults = {registry.default_config(Problem(LAYER, bucket), device) for bucket in BUCKETS}
    return sorted(set.intersection(*spaces) - defaults)[:count]


def tuned(path: Path, configs: list[Config]) -> Lookup:
    """A Lookup whose database has a record for every bucket of LAYER, with the configs in turn."""
    choices = {Problem(LAYER, b): configs[i % len(configs)] for i, b in enumerate(BUCKETS)}
    store_records(path, cpu_device(), choices)
    return Lookup(cpu_device(), str(path))


def use_family(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    monkeypatch.setattr(registry, "families", lambda: {family.name: family})


class Refusing(type(CPU_FAMILY)):
    """The CPU family, but some of its configs cannot be made ready."""

    def __init__(self, refused: set[Config]) -> None:
        self.refused = refused

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> Plan:
        if config in self.refused:
            raise LaunchError("the driver refuses it")
        return super().plan(config, layer, device, cubin)


class Compiled(type(CPU_FAMILY)):
    """The CPU family, but its plans ask for a cubin of a source that is not there."""

    def __init__(self, compiled: set[Config]) -> None:
        self.compiled = compiled
        self.cubins: list[bytes | None] = []

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit | None:  # noqa: ARG002
        if config not in self.compiled:
            return None
        return Unit("no_such_kernel.cu", config.values, "sm_80")

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> Plan:
        self.cubins.append(cubin)
        return super().plan(config, layer, device, None)


def test_each_bucket_runs_the_config_of_its_answer(tmp_path: Path) -> None:
    configs = distinct_configs(3)
    assert len(configs) == 3
    plans = LayerPlans(LAYER, tuned(tmp_path / "records.db", configs))
    for i, (bucket, answer) in enumerate(zip(BUCKETS, plans.answers, strict=True)):
        assert (answer.problem.m, answer.source) == (bucket, "exact")
        assert answer.config == configs[i % 3]
        for other, config in enumerate(plans.answers):
            same = config.config == answer.config
            assert (plans.plan(BUCKETS[other]) is plans.plan(bucket)) == same


@given(st.integers(1, 20000))
def test_any_m_runs_the_plan_of_its_bucket(m: int) -> None:
    plans = plans_for(LAYER, default_lookup(cpu_device()))
    assert plans.plan(m) is plans.plan(bucket_of(m))


def test_every_m_runs_the_config_of_the_next_record_and_counts_for_it(tmp_path: Path) -> None:
    one, other = distinct_configs(2)
    recorded = sorted((*COARSE, 24, 56, 3072))
    choices = {Problem(LAYER, m): other if m in (24, 56, 3072) else one for m in recorded}
    store_records(tmp_path / "records.db", cpu_device(), choices)
    plans = LayerPlans(LAYER, Lookup(cpu_device(), str(tmp_path / "records.db")))
    assert [answer.problem.m for answer in plans.answers] == recorded
    finer = {*range(17, 25), *range(33, 57), *range(2049, 3073)}
    counted = dict.fromkeys(recorded, 0)
    for m in (*range(1, 5001), 10**6):
        plan = plans.plan(m)
        assert plan is (plans.plan(3072) if m in finer else plans.plan(4096)), m
        assert plans.answer(m).config == (other if m in finer else one)
        served = next((each for each in recorded if each >= m), 4096)
        counted[served] += 1
        counted[3072 if m in finer else 4096] += 1
    assert plans._now.tally.calls == list(counted.values())


def test_what_is_alike_is_renewed_with_it_and_nothing_else(tmp_path: Path) -> None:
    """Plans of one layer and database, whenever they were made; not those of another database or layer."""
    config, device = distinct_configs(1)[0], cpu_device()
    first = plans_for(LAYER, Lookup(device, str(tmp_path / "mine.db")))
    elsewhere = plans_for(LAYER, Lookup(device, str(tmp_path / "none.db")))
    store_records(tmp_path / "mine.db", device, {Problem(LAYER, 1): config})
    lookup = Lookup(device, str(tmp_path / "mine.db"))
    second, other = (plans_for(layer, lookup) for layer in (LAYER, Layer(512, 512)))
    assert first.handle != second.handle
    store_records(tmp_path / "mine.db", device, {Problem(LAYER, 4): config, Problem(other.layer, 4): config})
    renew_plans([first])
    assert [plans.answer(4).source for plans in (first, second, other, elsewhere)] == [
        *("exact", "exact"),
        *("default", "default"),
    ]
    assert first.plan(1) is first.plan(4)
    made = plans_for(LAYER, Lookup(device, str(tmp_path / "mine.db")))
    assert made in (first, second), "whoever comes later shares it"


def test_without_records_a_layer_has_an_answer_for_each_power_of_two(tmp_path: Path) -> None:
    plans = LayerPlans(LAYER, Lookup(cpu_device(), str(tmp_path / "none.db")))
    assert [(answer.problem.m, answer.source) for answer in plans.answers] == [
        (1 << power, "default") for power in range(13)
    ]


def test_plans_are_shared_by_equal_layers_with_equal_answers(tmp_path: Path) -> None:
    lookup, again = (Lookup(cpu_device(), str(tmp_path / "none.db")) for _ in range(2))
    plans = Int4Linear.from_quantized(weight_of(LAYER, 1), lookup=lookup).plans
    assert Int4Linear.from_quantized(weight_of(LAYER, 2), lookup=lookup).plans is plans
    assert plans_for(LAYER, again) is plans
    assert plans_for(Layer(256, 1024), lookup) is not plans
    assert plans_for(LAYER, Lookup(cpu_device(), str(tmp_path / "other.db"))) is not plans
    assert plans_for(LAYER, tuned(tmp_path / "none.db", distinct_configs(1))) is not plans


def test_the_default_lookup_follows_the_database_in_force(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = distinct_configs(1)[0]
    store_records(tmp_path / "mine.db", cpu_device(), {Problem(LAYER, 1): config})
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "mine.db"))
    assert Int4Linear.from_quantized(weight_of(LAYER)).plans.answers[0].config == config
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "none.db"))
    assert Int4Linear.from_quantized(weight_of(LAYER)).plans.answers[0].source == "default"


def test_a_config_that_cannot_be_made_gives_way_to_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configs = distinct_configs(2)
    lookup = tuned(tmp_path / "records.db", configs)
    use_family(monkeypatch, Refusing({configs[0]}))
    weight = weight_of(LAYER)
    with pytest.warns(UserWarning, match="the driver refuses it") as caught:
        linear = Int4Linear.from_quantized(weight, lookup=lookup)
    assert len(caught) == 1
    assert str(configs[0]) in str(caught[0].message)
    broken, whole = linear.plans.answers[0], linear.plans.answers[1]
    assert (whole.source, whole.config) == ("exact", configs[1])
    assert broken.source == "default"
    assert broken.config == registry.default_config(Problem(LAYER, 1), cpu_device())
    assert (broken.record, broken.median_us) == (None, None)
    assert "the driver refuses it" in broken.reason
    x = tokens_of((1, LAYER.k), torch.float16)
    assert_is_linear(linear(x), weight, x)


def test_configs_that_cannot_be_made_are_warned_of_once_for_all_layers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configs = distinct_configs(2)
    lookup = tuned(tmp_path / "records.db", configs)
    use_family(monkeypatch, Refusing(set(configs)))
    with pytest.warns(UserWarning, match="the driver refuses it") as caught:
        plans_for(LAYER, lookup)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plans_for(Layer(1024, 1024), lookup)


def test_a_default_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    default = {registry.default_config(Problem(LAYER, bucket), cpu_device()) for bucket in BUCKETS}
    use_family(monkeypatch, Refusing(default))
    with pytest.raises(LaunchError, match="the driver refuses it"):
        plans_for(LAYER, Lookup(cpu_device(), str(tmp_path / "none.db")))


def test_the_kernel_comes_from_the_database_before_the_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The source of the unit does not exist, so only a stored cubin can be what the plan was made of."""
    stored, missing = distinct_configs(2)
    family = Compiled({stored, missing})
    use_family(monkeypatch, family)
    lookup = tuned(tmp_path / "records.db", [stored, missing])
    unit = family.unit(stored, LAYER, cpu_device())
    assert unit is not None
    with Store.open(str(tmp_path / "records.db")) as store:
        [record] = [r for r in store.records() if r.problem.m == 1]
        sweep = store.begin_sweep(cpu_device(), Environment("", "", "", "", {}), {})
        store.add_result(sweep, [], record, Binary(unit.key, "sm_80", "none", b"\x7fELF a cubin"))
    with pytest.warns(UserWarning, match="cannot be made") as caught:
        plans = plans_for(LAYER, lookup)
    assert str(missing) in str(caught[0].message)
    assert {answer.config for answer in plans.answers if answer.source == "exact"} == {stored}
    assert set(family.cubins) == {b"\x7fELF a cubin", None}


def test_without_any_kernel_the_compiler_has_the_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    default = {registry.default_config(Problem(LAYER, bucket), cpu_device()) for bucket in BUCKETS}
    use_family(monkeypatch, Compiled(default))
    with pytest.raises(CompileError):
        plans_for(LAYER, Lookup(cpu_device(), str(tmp_path / "none.db")))


def predicting(path: Path, configs: list[Config]) -> Lookup:
    """A Lookup without records, whose fit of this CPU goes by estimates and chooses from these configs."""
    device, nothing = cpu_device(), np.empty((0, 1), np.int64)
    forest = Forest(0.0, np.empty(0, np.int64), np.empty(0), nothing, np.empty((0, 2)))
    family = FamilyFit(tuple(configs[0]), (), (0.9, 1.1), forest)
    choices = Choices.of({m: {(LAYER.n, LAYER.k): configs} for m in COARSE})
    write(Fit(device.name, device.arch, 1, 1, {CPU_FAMILY.name: family}, choices), own_fit(path, device.name))
    return Lookup(device, path)


@pytest.mark.parametrize("to_compile", [0, 64])
def test_a_predicted_config_without_a_kernel_gives_way_to_the_next_best(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, to_compile: int
) -> None:
    """Be it that nothing more may be compiled, or that it does not compile: its source does not exist."""
    lookup = predicting(tmp_path / "none.db", distinct_configs(2))
    first, second, *_ = lookup.alternatives(lookup.answer(Problem(LAYER, 1)))
    use_family(monkeypatch, Compiled({first.config}))
    making._states[lookup] = making._State(to_compile=to_compile)
    plans = plans_for(LAYER, lookup)
    assert plans.answer(1).source == "predicted"
    assert plans.answer(1) == second
    assert making._states[lookup].to_compile == max(0, to_compile - 1)


def test_device_of_tensors() -> None:
    assert device_of(torch.zeros(1)) == cpu_device()
    with pytest.raises(DeviceError, match="meta"):
        device_of(torch.zeros(1, device="meta"))
