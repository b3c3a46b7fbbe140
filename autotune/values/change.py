"""When a time is another one than before: beyond what the same kernel shows from one day to the next."""

from __future__ import annotations

from typing import NamedTuple

LEAST_CHANGE = 0.03
"""Of a time. Medians of one kernel on one H200 differ by less between days, however narrow they are."""


class MedianTime(NamedTuple):
    """A median and the interval that holds it with 95 % confidence, in microseconds."""

    median_us: float
    low_us: float
    high_us: float


def change(before: MedianTime, now: MedianTime) -> float | None:
    """The ratio of the times when they differ beyond noise: intervals disjoint, by LEAST_CHANGE or more."""
    ratio = now.median_us / before.median_us
    disjoint = now.low_us > before.high_us or now.high_us < before.low_us
    return ratio if disjoint and abs(ratio - 1) >= LEAST_CHANGE else None
