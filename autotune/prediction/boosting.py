"""Grows a forest: each tree is fitted, on histograms of the columns, to what those before it leave.

That is Friedman's "Greedy function approximation: a gradient boosting machine" (2001).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.prediction.forest import Floats, Forest

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Growth:
    """How a forest grows: `rate` of what a tree says counts, and `prior` weight of zeros is in each leaf.

    A tree sees a share of the `rows` and of the `columns`; a column has at most `bins` limits.
    """

    trees: int = 300
    depth: int = 6
    rate: float = 0.05
    prior: float = 5.0
    rows: float = 0.7
    columns: float = 0.6
    bins: int = 64
    seed: int = 0


def grow(rows: Floats, wanted: Floats, weights: Floats, growth: Growth) -> Forest:
    """A forest whose values come near `wanted`, one for each row of `rows`, [row, column]."""
    random = np.random.default_rng(growth.seed)
    limits = [_limits(column, growth.bins) for column in rows.T]
    binned = [np.searchsorted(each, column) for each, column in zip(limits, rows.T, strict=True)]
    useful = [column for column, each in enumerate(limits) if len(each)]
    base = float(np.average(wanted, weights=weights))
    if not useful:
        return Forest(base, np.empty(0, np.int64), np.empty(0), np.empty((0, 1), np.int64), np.empty((0, 2)))
    reached = np.full(len(wanted), base)
    asked: dict[tuple[int, int], int] = {}
    questions = np.empty((growth.trees, growth.depth), np.int64)
    leaves = np.empty((growth.trees, 1 << growth.depth))
    for tree in range(growth.trees):
        chosen = np.flatnonzero(random.random(len(wanted)) < growth.rows)
        columns = random.permutation(useful)[: max(1, int(len(useful) * growth.columns))]
        error = weights * (wanted - reached)
        sample = _Sample(error[chosen], weights[chosen], {each: binned[each][chosen] for each in columns})
        pairs = sample.split(growth, {each: len(limits[each]) for each in columns})
        leaves[tree] = growth.rate * sample.means(growth)
        questions[tree] = [asked.setdefault(pair, len(asked)) for pair in pairs]
        places = np.zeros(len(wanted), np.int64)
        for column, place in pairs:
            places = places * 2 + (binned[column] > place)
        reached += leaves[tree][places]
    return Forest(
        base,
        np.array([column for column, _ in asked], np.int64),
        np.array([limits[column][place] for column, place in asked]),
        questions,
        leaves,
    )


def _limits(column: Floats, bins: int) -> Floats:
    """Values that part the column's, at most `bins`."""
    values = np.unique(column)
    if len(values) > bins:
        return np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.asarray((values[1:] + values[:-1]) / 2)


class _Sample:
    """The rows that a tree sees, each in a leaf of the levels so far."""

    def __init__(self, errors: Floats, weights: Floats, binned: dict[int, Ints]) -> None:
        """`errors` are weighted."""
        self._errors, self._weights, self._binned = errors, weights, binned
        self._leaf = np.zeros(len(errors), np.int64)

    def split(self, growth: Growth, limits: dict[int, int]) -> list[tuple[int, int]]:
        """Column and limit of each level, the best of all columns, which have so many limits."""
        return [self._level(1 << level, growth, limits) for level in range(growth.depth)]

    def means(self, growth: Growth) -> Floats:
        """The mean error of each leaf."""
        count = 1 << growth.depth
        errors = np.bincount(self._leaf, self._errors, count)
        return np.asarray(errors / (np.bincount(self._leaf, self._weights, count) + growth.prior))

    def _level(self, leaves: int, growth: Growth, limits: dict[int, int]) -> tuple[int, int]:
        def gain_of(column: int) -> tuple[float, int, int]:
            bins = limits[column] + 1
            place = self._leaf * bins + self._binned[column]
            below, weight = (
                np.bincount(place, of, leaves * bins).reshape(leaves, bins).cumsum(axis=1)
                for of in (self._errors, self._weights)
            )
            above, rest = below[:, -1:] - below, weight[:, -1:] - weight
            gains = below**2 / (weight + growth.prior) + above**2 / (rest + growth.prior)
            best = gains.sum(axis=0)[:-1]
            return float(best.max()), column, int(best.argmax())

        _, column, place = max(map(gain_of, self._binned), key=lambda gain: gain[0])
        self._leaf = self._leaf * 2 + (self._binned[column] > place)
        return column, place
