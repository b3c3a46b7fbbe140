"""Family `wgmma`: its space, what it leaves to others, and what ptxas makes of it."""

from dataclasses import replace

import pytest
from known import H200
from ptxas import is_serialised, ptxas_log, spills

from autotune.families.wgmma import FAMILY
from autotune.values.config import Config
from autotune.values.layer import Layer, Problem
from autotune.values.paths import shipped

TUNABLES = ("fragments", "warpgroups_n", "warpgroups_k", "stages", "split_k")


@pytest.mark.parametrize(("m", "tile"), {5: 8, 40: 40, 64: 64, 65: 80, 150: 80, 256: 128, 512: 128}.items())
def test_it_takes_more_tokens_than_a_tile_in_equal_shares(m, tile):
    configs = FAMILY.space(Problem(Layer(n=4096, k=4096), m), H200)
    assert {config["tile_m"] for config in configs} == {tile}


@pytest.mark.parametrize("m", [4, 513])
def test_it_leaves_fewest_and_most_tokens_to_others(m):
    assert FAMILY.space(Problem(Layer(n=4096, k=4096), m), H200) == []


WINNERS = {
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
}
"""By n, k and m, what won races on an H200 or an H100, or nearly did: values of TUNABLES."""


@pytest.mark.parametrize(("n", "k", "m"), WINNERS)
def test_what_won_a_race_is_not_pruned(n, k, m):
    space = FAMILY.space(Problem(Layer(n=n, k=k), m), H200)
    assert WINNERS[n, k, m] <= {tuple(config[name] for name in TUNABLES) for config in space}


def changed(**changed):
    values = {"tile_m": 32, "fragments": 2, "warpgroups_n": 1, "warpgroups_k": 1, "stages": 4}
    return Config.of("wgmma", **values | {"split_k": 2, "scale_sums": 1} | changed)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (changed(stages=2), "stages=2"),
        (changed(warpgroups_n=3), "(1, 3, 1)"),
        (changed(tile_m=64), "registers beyond tile_m=32"),
    ],
    ids=str,
)
def test_a_rejected_config_says_why(config, reason):
    assert reason in FAMILY.reject(config, Problem(Layer(n=4096, k=2048), 16), H200)


def units():
    """Every shape and way to scale, by group size and dtype."""
    layers = [
        Layer(n=12288, k=4096),
        Layer(n=4096, k=4096, group_size=64, dtype="bf16"),
        Layer(n=4096, k=4096, group_size=32, dtype="bf16", zero_point=False),
    ]
    chosen = [
        (layer, FAMILY.valid(Problem(layer, m), H200)) for layer in layers for m in (8, 16, 32, 64, 128)
    ]
    made = (FAMILY.unit(config, layer, H200) for layer, space in chosen for config in space[::13])
    return list({unit.key: unit for unit in made}.values())


def test_it_neither_spills_nor_waits_for_each_product():
    logs = [ptxas_log(unit) for unit in units()]
    assert len(logs) > 20
    assert not any(map(spills, logs))
    assert not any(map(is_serialised, logs))


def test_one_whose_sums_are_read_too_early_is_serialised(tmp_path):
    text = shipped("csrc/cuda").joinpath("wgmma/wgmma.cu").read_text()
    assert text.count("wgmma_wait_group<0>();") == 1
    source = tmp_path / "early.cu"
    source.write_text(text.replace("wgmma_wait_group<0>();", ""))
    assert is_serialised(ptxas_log(replace(units()[0], source=str(source))))
