"""Family `prefill`: what ptxas makes of it, and which tiles are worth timing."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from known import H200, LLAMA7B
from ptxas import is_serialised, ptxas_log, spills

from autotune.families.prefill import FAMILY
from autotune.values.layer import Layer, Problem


def units():
    """The largest tile of each shape, some between, and each way to share the work."""
    layers = [Layer(n=4096, k=4096), Layer(n=4096, k=4096, group_size=32, dtype="bf16")]
    tiles = [(256, 2, 1), (208, 2, 1), (128, 2, 1), (128, 2, 2), (112, 2, 2), (160, 3, 1)]
    ways = [(2, 1, 1), (1, 4, 0)]
    configs = [FAMILY.config(*tile, *way) for tile in tiles for way in ways]
    configs += [FAMILY.config(192, 3, 1, *way) for way in ((2, 1, 0), (1, 2, 0))]
    configs += [FAMILY.config(176, 3, 1, 2, 1, 1)]
    return [FAMILY.unit(config, layer, H200) for config in configs for layer in layers]


def test_it_neither_spills_nor_waits_for_each_product():
    with ThreadPoolExecutor() as pool:
        logs = list(pool.map(ptxas_log, units()))
    assert not any(map(spills, logs))
    assert not any(map(is_serialised, logs))


@pytest.mark.parametrize("layer", [*LLAMA7B, Layer(1024, 8192), Layer(4096, 4096, group_size=32)], ids=str)
def test_no_tile_that_is_left_out_is_estimated_to_be_faster(layer):
    shapes = [(2, 1), (2, 2), (3, 1)]
    ways = [(2, 1, 1), (2, 1, 0), (1, 1, 1), (1, 1, 0), (1, 2, 0), (1, 3, 0), (1, 4, 0)]
    tiles = itertools.product(range(64, 257, 16), shapes, ways)
    every = [FAMILY.config(tile_m, *shape, *way) for tile_m, shape, way in tiles]
    for m in (160, 256, 333, 640, 1300, 4096):
        problem = Problem(layer, m)
        valid = (config for config in every if FAMILY.misfit(config, problem, H200) is None)
        least_us = min(FAMILY.estimate(config, problem, H200) for config in valid)
        candidates = FAMILY.candidates(problem, H200)
        assert min(FAMILY.estimate(each, problem, H200) for each in candidates) <= 1.03 * least_us


def test_a_tile_of_fewer_tokens_fills_a_wave():
    # 32 tiles of 128 rows times four of 160 tokens: 128 blocks, where three of 224 make 96.
    space = FAMILY.space(Problem(Layer(4096, 4096), 640), H200)
    assert (160, 2) in {(config["tile_m"], config["warpgroups"]) for config in space}
