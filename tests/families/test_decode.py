"""Family `decode`: its space, and what it leaves to others."""

import pytest
from known import H200

from autotune.families.decode import FAMILY
from autotune.values.config import Config
from autotune.values.layer import Layer, Problem


@pytest.mark.parametrize(("m", "some"), {1: True, 4: True, 5: False, 16: False}.items())
def test_it_is_for_up_to_four_tokens(m, some):
    problem = Problem(Layer(n=4096, k=4096), m)
    assert bool(FAMILY.space(problem, H200)) == some
    assert (FAMILY.default(problem, H200) is not None) == some


WINNERS = {
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
}
"""By n, k and m, what won races on an H200 or an H100, or nearly did: values of all tunables."""


@pytest.mark.parametrize(("n", "k", "m"), WINNERS)
def test_what_won_a_race_is_not_pruned(n, k, m):
    space = FAMILY.space(Problem(Layer(n=n, k=k), m), H200)
    assert WINNERS[n, k, m] <= {tuple(value for _, value in config.values) for config in space}


def changed(**changed):
    values = {"fragments": 2, "warps_n": 2, "warps_k": 4, "stages": 3}
    values |= {"ahead": 2, "split_k": 2, "chunks": 4, "persistent": 1}
    return Config.of("decode", **values | changed)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Config.of("decode", fragments=4), "tunables"),
        (changed(stages=6), "stages=6"),
        (changed(warps_n=2, warps_k=16), "32 warps"),
        (changed(warps_n=1, warps_k=16), "2 slices of 16 warps"),
    ],
    ids=str,
)
def test_a_rejected_config_says_why(config, reason):
    assert reason in FAMILY.reject(config, Problem(Layer(n=4096, k=2048), 16), H200)
