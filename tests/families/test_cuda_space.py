"""The CUDA families' spaces and their compilation, without a GPU: GPUs of every arch as values."""

import pytest
from known import A40, A100, B200, GPUS, H200, L40S, LLAMA7B, RTX4090, RTX5090

from autotune.families import registry
from autotune.jit import compiler
from autotune.jit.building import build_all
from autotune.values.config import Config
from autotune.values.layer import BUCKETS, Layer, Problem


@pytest.mark.parametrize("m", BUCKETS)
@pytest.mark.parametrize("layer", LLAMA7B, ids=str)
def test_space_holds_the_default_and_only_valid_configs(layer, m):
    problem = Problem(layer, m)
    space = registry.space(problem, H200)
    assert len(space) == len(set(space))
    registry.check(registry.default_config(problem, H200), problem, H200)
    for config in space:
        registry.check(config, problem, H200)
        assert Config.parse(str(config)) == config


@pytest.mark.parametrize(
    "layer",
    [Layer(8, 8, group_size=-1), Layer(72, 4104, group_size=-1), Layer(64, 32, group_size=32)],
    ids=str,
)
@pytest.mark.parametrize("m", [1, 5, 16, 64, 65, 129, 512, 4096])
@pytest.mark.parametrize("device", GPUS, ids=lambda device: device.arch)
def test_the_smallest_layers_have_a_default(layer, m, device):
    problem = Problem(layer, m)
    registry.check(registry.default_config(problem, device), problem, device)


@pytest.mark.parametrize("layer", [Layer(4096, 4096), Layer(22016, 4096), Layer(8192, 28672)], ids=str)
@pytest.mark.parametrize("device", [A100, RTX4090], ids=lambda device: device.arch)
def test_a_sweep_decides_between_families_where_nobody_has_measured(layer, device):
    spaces = {m: registry.space(Problem(layer, m), device) for m in BUCKETS}
    families = {m: {config.family for config in space} for m, space in spaces.items()}
    assert sum(len(families[m]) > 1 for m in BUCKETS) >= 3
    for m in BUCKETS:
        assert families[m] >= {registry.default_config(Problem(layer, m), device).family}


@pytest.mark.parametrize("device", [A40, L40S, B200, RTX5090], ids=lambda device: device.arch)
def test_what_runs_beside_hopper_needs_nothing_of_it(device):
    spaces = (registry.space(Problem(layer, m), device) for layer in LLAMA7B for m in (1, 64, 4096))
    found = {config.family: registry.family_of(config) for space in spaces for config in space}
    assert len(found) > 1
    assert all(family.hopper is None for family in found.values())


def test_fp32_is_not_for_the_gpu():
    problem = Problem(Layer(64, 64, group_size=64, dtype="fp32"), 1)
    assert registry.space(problem, H200) == []


def sampled_units(device):
    """The default configs of every bucket, and a sample of the spaces, over group sizes and dtypes."""
    defaults, sample = {}, {}
    variants = [
        Layer(4096, 4096),
        Layer(4096, 4096, group_size=32, dtype="bf16"),
        Layer(4096, 4096, group_size=-1, zero_point=False),
    ]
    for layer in variants:
        for m in (1, 16, 32, 64, 256):
            problem = Problem(layer, m)
            config = registry.default_config(problem, device)
            unit = registry.family_of(config).unit(config, layer, device)
            defaults[unit.key] = unit
            for config in registry.space(problem, device)[7::173]:
                unit = registry.family_of(config).unit(config, layer, device)
                sample[unit.key] = unit
    return defaults, sample


@pytest.mark.parametrize("device", GPUS, ids=lambda device: device.arch)
def test_a_sample_compiles_and_defaults_hardly_spill(device):
    defaults, sample = sampled_units(device)
    built = build_all(sample.values())
    assert {key: str(result) for key, result in built.items() if not isinstance(result, bytes)} == {}
    spilled = {unit: used for unit in defaults.values() if (used := compiler.resources(unit)).spill_bytes}
    assert all(used.spill_bytes <= 160 for used in spilled.values())
    # Large tiles of the one family beside Hopper won races with their spills; nothing else may have any.
    assert all(("TILE_M", 64) in unit.defines for unit in spilled)
