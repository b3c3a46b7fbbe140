"""Family `mma`: why it rejects a config."""

import pytest
from known import H200

from autotune.families.mma import FAMILY
from autotune.values.config import Config
from autotune.values.layer import Layer, Problem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mma:tile_m=16", "tunables"),
        ("mma:tile_m=12,tile_n=64,warps=4,warps_k=1,loads=2,split_k=1", "tile_m=12"),
        ("mma:tile_m=8,tile_n=256,warps=16,warps_k=1,loads=2,split_k=64", "split_k=64"),
        ("mma:tile_m=8,tile_n=256,warps=4,warps_k=4,loads=2,split_k=1", "would be 256"),
        ("mma:tile_m=8,tile_n=64,warps=4,warps_k=1,loads=4,split_k=1", "loads=4"),
        ("mma:tile_m=8,tile_n=64,warps=4,warps_k=2,loads=2,split_k=32", "32 slices"),
    ],
)
def test_a_rejected_config_says_why(text, reason):
    problem = Problem(Layer(n=4096, k=2048), 16)
    assert reason in FAMILY.reject(Config.parse(text), problem, H200)
