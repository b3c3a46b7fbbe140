"""Family `prefill`: what ptxas makes of it."""

from concurrent.futures import ThreadPoolExecutor

from known import H200
from ptxas import is_serialised, ptxas_log, spills

from autotune.families.prefill import FAMILY
from autotune.values.layer import Layer


def units():
    """The largest tile of each shape, some between, and each way to share the work."""
    layers = [Layer(n=4096, k=4096), Layer(n=4096, k=4096, group_size=32, dtype="bf16")]
    tiles = [(256, 2, 1), (208, 2, 1), (128, 2, 1), (128, 2, 2), (112, 2, 2), (160, 3, 1)]
    ways = [(2, 1, 1), (1, 4, 0)]
    configs = [FAMILY.config(*tile, *way) for tile in tiles for way in ways]
    return [FAMILY.unit(config, layer, H200) for config in configs for layer in layers]


def test_it_neither_spills_nor_waits_for_each_product():
    with ThreadPoolExecutor() as pool:
        logs = list(pool.map(ptxas_log, units()))
    assert not any(map(spills, logs))
    assert not any(map(is_serialised, logs))
