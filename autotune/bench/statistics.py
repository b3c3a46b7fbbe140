"""Order statistics of timing samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """The median of some samples and its confidence interval."""

    median: float
    low: float
    high: float


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Median with the distribution-free interval between order statistics.

    The number of samples below the true median is binomial(n, 1/2), so the interval from the r-th smallest
    to the r-th largest holds the median with probability 1 - 2 P(B <= r - 1) (David and Nagaraja, "Order
    Statistics", section 7.1). With too few samples for the confidence it is their whole range.
    """
    ordered = sorted(samples)
    n = len(ordered)
    tail, rank = 0.0, 0
    while rank < n // 2:
        tail += math.comb(n, rank) / 2**n
        if 2 * tail > 1 - confidence:
            break
        rank += 1
    lower = max(rank - 1, 0)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return Estimate(middle, ordered[lower], ordered[n - 1 - lower])


def can_decide(rounds: int, confidence: float) -> bool:
    """Whether an interval of so many samples can have the confidence: 2 / 2^n at most what is left of 1."""
    return 2.0 ** (1 - rounds) <= 1 - confidence


def ratio_interval(above: Sequence[float], below: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Median of above / below round by round: what moves both samples of a round cancels."""
    return median_interval([a / b for a, b in zip(above, below, strict=True)], confidence)
