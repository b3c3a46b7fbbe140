"""How near two layers or problems are, for answers that nobody measured. Standard library only."""

from __future__ import annotations

from math import log2

from autotune.values.layer import Layer, Problem

NEAR_OCTAVES = 2.0
"""How far a near record may be, in m, and in n and k together: a factor of four."""


def octaves(a: int, b: int) -> float:
    """|log2| of the ratio."""
    return abs(log2(a / b))


def distance(a: Layer, b: Layer) -> float:
    """Octaves of n and of k, summed."""
    return octaves(a.n, b.n) + octaves(a.k, b.k)


def is_near(a: Problem, b: Problem) -> bool:
    """Whether the numbers of tokens are near enough."""
    return octaves(a.m, b.m) <= NEAR_OCTAVES
