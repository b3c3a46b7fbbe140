"""A forest against a walk of its trees, and what it learns against the function that it was shown."""

from __future__ import annotations

import json

import numpy as np
import pytest

from autotune.prediction.boosting import Growth, grow
from autotune.prediction.forest import Forest


def some(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 4))


def walked(forest: Forest, row: np.ndarray) -> float:
    """The value of one row, question by question."""
    value = forest.base
    for questions, leaves in zip(forest.questions, forest.leaves, strict=True):
        bits = ["1" if row[forest.columns[q]] > forest.limits[q] else "0" for q in questions]
        value += leaves[int("".join(bits), 2)]
    return value


def steps(rows: np.ndarray) -> np.ndarray:
    """A function with steps, one of them in a product of two columns."""
    return np.where(rows[:, 0] > 0.3, 1.0, 0.0) + np.where((rows[:, 1] > 0.5) & (rows[:, 2] < 0.5), 2.0, 0.0)


@pytest.fixture(scope="module")
def forest() -> Forest:
    rows = some(1600, seed=7)
    return grow(rows, steps(rows), np.ones(1600), Growth(depth=4))


def test_its_values_are_those_of_a_walk(forest: Forest) -> None:
    rows = some(50, seed=1)
    assert forest.values(rows) == pytest.approx([walked(forest, row) for row in rows])


def test_it_learns_steps_and_products(forest: Forest) -> None:
    rows = some(400, seed=2)
    assert np.abs(forest.values(rows) - steps(rows)).mean() < 0.1 * steps(rows).std()


def test_it_is_the_same_after_json(forest: Forest) -> None:
    rows = some(50, seed=1)
    read = Forest.of_row(json.loads(json.dumps(forest.as_row())))
    assert read.values(rows) == pytest.approx(forest.values(rows), abs=1e-3)
    again = Forest.of_row(json.loads(json.dumps(read.as_row())))
    assert again.values(rows).tolist() == read.values(rows).tolist()


def test_weights_say_what_counts() -> None:
    """Two answers to one question: the heavier one wins."""
    rows = np.repeat([[0.0], [1.0]], 100, axis=0)
    wanted = np.tile([1.0, 3.0], 100)
    weights = np.tile([9.0, 1.0], 100)
    forest = grow(rows, wanted, weights, Growth(trees=50, depth=1, rate=0.5))
    assert forest.values(np.array([[0.0], [1.0]])) == pytest.approx([1.2, 1.2], abs=0.05)


def test_rows_that_are_all_alike_have_their_mean() -> None:
    forest = grow(np.ones((10, 3)), np.arange(10.0), np.ones(10), Growth(trees=5))
    assert forest.values(np.zeros((2, 3))) == pytest.approx([4.5, 4.5])


@pytest.mark.parametrize("key", ["questions", "leaves", "columns", "depth"])
def test_a_damaged_row_does_not_read(forest: Forest, key: str) -> None:
    row = forest.as_row()
    row[key] = row[key][:-3] if isinstance(row[key], (str, list)) else 9
    with pytest.raises((ValueError, IndexError)):
        Forest.of_row(row)
