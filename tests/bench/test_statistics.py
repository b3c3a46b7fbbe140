"""The median's interval against published ranks and its promised coverage."""

import random

import pytest

from autotune.bench.statistics import median_interval


@pytest.mark.parametrize(
    ("count", "rank"),
    # The 95 % ranks of the sign-test interval, as tabulated in textbooks of nonparametric statistics.
    [(6, 1), (9, 2), (12, 3), (15, 4), (20, 6), (25, 8)],
)
def test_ranks_are_the_tabulated_ones(count, rank):
    samples = [float(value) for value in range(1, count + 1)]
    random.Random(count).shuffle(samples)
    estimate = median_interval(samples)
    assert (estimate.low, estimate.high) == (rank, count + 1 - rank)
    assert estimate.median == (count + 1) / 2


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_samples_give_their_whole_range(count):
    samples = [float(value) for value in range(count)]
    estimate = median_interval(samples)
    assert (estimate.low, estimate.high) == (0, count - 1)


def test_the_interval_holds_the_median_as_often_as_promised():
    generator = random.Random(7)
    runs, held = 2000, 0
    for _ in range(runs):
        estimate = median_interval([generator.lognormvariate(0, 1) for _ in range(25)])
        held += estimate.low <= 1.0 <= estimate.high
    assert held / runs >= 0.94
