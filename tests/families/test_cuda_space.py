"""The CUDA families' spaces and their compilation, without a GPU: GPUs of every arch as values."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from gpu_spaces import whole_space
from known import A40, A100, B200, GPUS, H200, L40S, LLAMA7B, RTX4090, RTX5090

from autotune.families import registry
from autotune.jit import compiler
from autotune.jit.building import build_all
from autotune.values.config import Config
from autotune.values.layer import BUCKETS, Layer, Problem
from autotune.values.paths import shipped


def decode(**changed):
    values = {"fragments": 2, "warps_n": 2, "warps_k": 4, "stages": 3}
    return str(
        Config.of("decode", **values | {"ahead": 2, "split_k": 2, "chunks": 4, "persistent": 1} | changed)
    )


def wgmma(**changed):
    values = {"tile_m": 32, "fragments": 2, "warpgroups_n": 1, "warpgroups_k": 1, "stages": 4}
    return str(Config.of("wgmma", **values | {"split_k": 2, "scale_sums": 1} | changed))


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


@pytest.mark.parametrize("layer", [Layer(1024, 4096), *LLAMA7B, Layer(8192, 28672)], ids=str)
def test_tokens_from_decode_to_prefill_have_the_families_made_for_them(layer):
    families = {m: registry.default_config(Problem(layer, m), H200).family for m in BUCKETS}
    assert {families[m] for m in (1, 2, 4)} == {"decode"}
    assert {families[m] for m in BUCKETS if 8 <= m <= 64} == {"wgmma"}
    assert {families[m] for m in BUCKETS if m >= 512} - {"dequant_matmul"} == {"prefill"}
    families = {m: registry.default_config(Problem(layer, m), A100).family for m in BUCKETS}
    assert {families[m] for m in BUCKETS if m <= 64} == {"mma"}
    assert families[4096] == "dequant_matmul"


@pytest.mark.parametrize("layer", [Layer(4096, 4096), Layer(22016, 4096), Layer(8192, 28672)], ids=str)
@pytest.mark.parametrize("device", [A100, RTX4090], ids=lambda device: device.arch)
def test_a_sweep_decides_between_mma_and_matmul_where_nobody_has_measured(layer, device):
    spaces = {m: registry.space(Problem(layer, m), device) for m in BUCKETS}
    families = {m: {config.family for config in space} for m, space in spaces.items()}
    assert sum(families[m] == {"mma", "dequant_matmul"} for m in BUCKETS) >= 3
    for m in BUCKETS:
        assert families[m] >= {registry.default_config(Problem(layer, m), device).family}


@pytest.mark.parametrize("device", [A40, L40S, B200, RTX5090], ids=lambda device: device.arch)
def test_what_runs_beside_hopper(device):
    spaces = (registry.space(Problem(layer, m), device) for layer in LLAMA7B for m in (1, 64, 4096))
    assert {config.family for space in spaces for config in space} == {"mma", "dequant_matmul"}


@pytest.mark.parametrize(("m", "some"), {1: True, 4: True, 5: False, 16: False}.items())
def test_decode_is_for_up_to_four_tokens(m, some):
    problem, family = Problem(Layer(4096, 4096), m), registry.families()["decode"]
    assert bool(family.space(problem, H200)) == some
    assert (family.default(problem, H200) is not None) == some


@pytest.mark.parametrize(("m", "tile"), {5: 8, 40: 40, 64: 64, 65: 80, 150: 80, 256: 128, 512: 128}.items())
def test_wgmma_takes_more_tokens_than_a_tile_in_equal_shares(m, tile):
    configs = registry.families()["wgmma"].space(Problem(Layer(4096, 4096), m), H200)
    assert {config["tile_m"] for config in configs} == {tile}


WINNERS = {
    "decode": {
        (4096, 4096, 1): {(4, 1, 8, 2, 1, 2, 1, 1), (4, 1, 8, 2, 1, 2, 0, 1)},
        (4096, 11008, 1): {(2, 1, 16, 3, 1, 1, 0, 1), (2, 1, 16, 2, 1, 1, 0, 1)},
        (12288, 4096, 1): {(2, 1, 8, 2, 1, 1, 1, 0)},
        (22016, 4096, 1): {(4, 1, 4, 3, 2, 1, 1, 0), (4, 1, 16, 2, 2, 1, 0, 1)},
        (4096, 4096, 2): {(4, 1, 8, 2, 1, 2, 0, 1)},
        (4096, 11008, 2): {(2, 2, 8, 3, 1, 2, 0, 1)},
        (12288, 4096, 2): {(2, 1, 16, 2, 1, 1, 0, 1)},
        (22016, 4096, 2): {(2, 2, 8, 3, 2, 1, 0, 1), (4, 1, 16, 2, 2, 1, 0, 1)},
        (4096, 4096, 4): {(4, 1, 8, 2, 1, 2, 0, 1)},
        (4096, 11008, 4): {(4, 1, 16, 2, 1, 2, 4, 1)},
        (12288, 4096, 4): {(2, 1, 16, 2, 1, 1, 0, 1)},
        (22016, 4096, 4): {(2, 2, 8, 4, 2, 1, 0, 1), (4, 1, 16, 2, 2, 1, 0, 1), (4, 1, 16, 2, 2, 1, 4, 1)},
    },
    "wgmma": {
        (4096, 4096, 8): {(1, 1, 1, 4, 8), (2, 1, 1, 3, 8)},
        (4096, 11008, 8): {(1, 1, 1, 6, 8), (2, 1, 1, 4, 8), (1, 1, 3, 6, 2)},
        (12288, 4096, 8): {(1, 1, 2, 3, 2)},
        (22016, 4096, 8): {(2, 1, 1, 4, 2), (2, 1, 1, 3, 2)},
        (4096, 4096, 16): {(1, 1, 1, 4, 8), (1, 1, 1, 3, 8)},
        (4096, 11008, 16): {(1, 1, 1, 4, 8), (1, 1, 3, 6, 2)},
        (12288, 4096, 16): {(1, 1, 2, 3, 2), (1, 1, 2, 4, 2)},
        (22016, 4096, 16): {(2, 1, 1, 3, 2), (2, 1, 1, 4, 2)},
        (4096, 4096, 32): {(1, 1, 3, 4, 2), (1, 1, 2, 6, 2)},
        (4096, 11008, 32): {(1, 1, 2, 6, 2), (1, 1, 3, 4, 2)},
        (12288, 4096, 32): {(1, 3, 1, 6, 2)},
        (22016, 4096, 32): {(1, 3, 1, 6, 1)},
        (4096, 4096, 64): {(1, 1, 3, 3, 2)},
        (4096, 11008, 64): {(1, 1, 3, 3, 2)},
        (12288, 4096, 64): {(1, 3, 1, 4, 2), (1, 3, 1, 6, 2)},
        (22016, 4096, 64): {(1, 3, 1, 4, 1), (1, 3, 1, 6, 1)},
        (4096, 4096, 128): {(1, 1, 2, 3, 2)},
        (4096, 11008, 128): {(1, 1, 2, 3, 2)},
        (12288, 4096, 128): {(1, 3, 1, 3, 2), (1, 3, 1, 4, 2)},
        (22016, 4096, 128): {(1, 3, 1, 4, 1), (1, 3, 1, 3, 1)},
        (5120, 5120, 128): {(1, 3, 1, 4, 4), (1, 3, 1, 3, 4)},
        (5120, 17408, 128): {(1, 3, 1, 4, 4), (1, 3, 1, 3, 4)},
        (8192, 8192, 128): {(1, 1, 2, 3, 1), (1, 2, 1, 3, 2), (1, 2, 1, 4, 2)},
        (10240, 8192, 128): {(1, 3, 1, 4, 2), (1, 3, 1, 3, 2)},
        (7168, 2048, 128): {(1, 1, 2, 3, 1)},
        (4096, 14336, 128): {(1, 1, 2, 3, 2)},
    },
}
"""By n, k and m, what won races on an H200 or an H100, or nearly did: values of TUNABLES."""

TUNABLES = {
    "decode": ("fragments", "warps_n", "warps_k", "stages", "ahead", "split_k", "chunks", "persistent"),
    "wgmma": ("fragments", "warpgroups_n", "warpgroups_k", "stages", "split_k"),
}


@pytest.mark.parametrize(
    ("family", "n", "k", "m"), [(family, *each) for family, won in WINNERS.items() for each in won]
)
def test_what_won_a_race_is_not_pruned(family, n, k, m):
    space = registry.families()[family].space(Problem(Layer(n, k), m), H200)
    left = {tuple(config[name] for name in TUNABLES[family]) for config in space}
    assert WINNERS[family][n, k, m] <= left


@pytest.mark.parametrize("m", [4, 513])
def test_wgmma_leaves_fewest_and_most_tokens_to_others(m):
    assert registry.families()["wgmma"].space(Problem(Layer(4096, 4096), m), H200) == []


def test_fp32_is_not_for_the_gpu():
    problem = Problem(Layer(64, 64, group_size=64, dtype="fp32"), 1)
    assert registry.space(problem, H200) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mma:tile_m=16", "tunables"),
        ("mma:tile_m=12,tile_n=64,warps=4,warps_k=1,loads=2,split_k=1", "tile_m=12"),
        ("mma:tile_m=8,tile_n=256,warps=16,warps_k=1,loads=2,split_k=64", "split_k=64"),
        ("mma:tile_m=8,tile_n=256,warps=4,warps_k=4,loads=2,split_k=1", "256 rows"),
        ("mma:tile_m=8,tile_n=64,warps=4,warps_k=1,loads=4,split_k=1", "loads=4"),
        ("mma:tile_m=8,tile_n=64,warps=4,warps_k=2,loads=2,split_k=32", "32 slices"),
        ("dequant_matmul:chunk_mb=3", "chunk_mb=3"),
        ("decode:fragments=4", "tunables"),
        (decode(stages=6), "stages=6"),
        (decode(warps_n=2, warps_k=16), "32 warps"),
        (decode(warps_n=1, warps_k=16), "2 slices of 16 warps"),
        (wgmma(stages=2), "stages=2"),
        (wgmma(warpgroups_n=3), "(1, 3, 1)"),
        (wgmma(tile_m=64), "registers beyond tile_m=32"),
    ],
)
def test_a_rejected_config_says_why(text, reason):
    problem = Problem(Layer(4096, 2048), 16)
    config = Config.parse(text)
    assert reason in registry.family_of(config).reject(config, problem, H200)


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
    # Warps of 64 rows and 64 tokens won races with their spills; nothing else may have any.
    assert all({("TILE_M", 64), ("TILE_N", 128)} <= set(unit.defines) for unit in spilled)


def wgmma_units():
    """Every shape and way to scale of family wgmma, by group size and dtype."""
    family = registry.families()["wgmma"]
    layers = [
        Layer(12288, 4096),
        Layer(4096, 4096, group_size=64, dtype="bf16"),
        Layer(4096, 4096, group_size=32, dtype="bf16", zero_point=False),
    ]
    chosen = [
        (layer, whole_space(family, Problem(layer, m), H200))
        for layer in layers
        for m in (8, 16, 32, 64, 128)
    ]
    units = (family.unit(config, layer, H200) for layer, space in chosen for config in space[::13])
    return list({unit.key: unit for unit in units}.values())


def ptxas_log(unit):
    return compiler._compile(unit, "--ptxas-options=-v")[1]


def is_serialised(log):
    """ptxas waits for each wgmma by itself where it cannot tell who uses its registers, and says so."""
    return "C75" in log


def test_wgmma_neither_spills_nor_waits_for_each_product():
    logs = [ptxas_log(unit) for unit in wgmma_units()]
    assert len(logs) > 20
    assert all(" 0 bytes spill stores" in log for log in logs)
    assert not any(map(is_serialised, logs))


def prefill_units():
    """The largest tile of each shape of family prefill, some between, and each way to share the work."""
    layers = [Layer(4096, 4096), Layer(4096, 4096, group_size=32, dtype="bf16")]
    tiles = [(256, 2, 1), (208, 2, 1), (128, 2, 1), (128, 2, 2), (112, 2, 2), (160, 3, 1)]
    ways = [(2, 1, 1), (1, 4, 0)]
    names = ("tile_m", "warpgroups", "fragments", "cluster", "split_k", "stream_k")
    values = [(*tile, *way) for tile in tiles for way in ways]
    configs = [Config("prefill", tuple(zip(names, each, strict=True))) for each in values]
    family = registry.families()["prefill"]
    return [family.unit(config, layer, H200) for config in configs for layer in layers]


def test_prefill_neither_spills_nor_waits_for_each_product():
    with ThreadPoolExecutor() as pool:
        logs = list(pool.map(ptxas_log, prefill_units()))
    assert all(" 0 bytes spill stores" in log for log in logs)
    assert not any(map(is_serialised, logs))


def test_a_wgmma_whose_sums_are_read_too_early_is_serialised(tmp_path):
    text = shipped("csrc/cuda").joinpath("wgmma/wgmma.cu").read_text()
    assert text.count("wgmma_wait_group<0>();") == 1
    source = tmp_path / "early.cu"
    source.write_text(text.replace("wgmma_wait_group<0>();", ""))
    unit = replace(wgmma_units()[0], source=str(source))
    assert is_serialised(ptxas_log(unit))
