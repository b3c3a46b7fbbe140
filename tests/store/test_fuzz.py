"""Some hundred databases damaged at random, the same ones each time; `make fuzz` tries others."""

from __future__ import annotations

import pytest
from fuzz_database import run_case, whole_database

CASES = 50


@pytest.fixture(scope="module")
def whole() -> bytes:
    return whole_database()


@pytest.mark.parametrize("first", range(0, 6 * CASES, CASES))
def test_no_damage_stops_a_model_or_a_verb(whole, first):
    for seed in range(first, first + CASES):
        run_case(seed, whole)
