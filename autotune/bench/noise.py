"""Whether a time can be believed: its interval is narrow, and it is possible, and nobody disturbed it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from autotune.bench.statistics import Estimate
from autotune.values.record import Mode, Record

_WIDEST = 0.3
"""Width of an interval of 95 % over its median. On an H200 nothing that was stored had more than 0.08."""
_LEAST_OF_FLOOR = 0.5
"""Time over the roofline's. A kernel may multiply in narrower types than the matmul by which the ceiling is
measured, and a large matmul may lower the clock: a record of an H200 has 0.92."""

_CLEAN, _DISTURBED = 0.01, 0.05
"""Share of the CPU time that was wanted during a sample and went to others."""

DISTURBED = "other processes took CPU time from most of its samples"


def is_narrow(estimate: Estimate) -> bool:
    """Whether the interval tells enough of the median."""
    return estimate.high - estimate.low <= _WIDEST * estimate.median


def is_clean(stolen: float) -> bool:
    """Whether others took so little of a sample's CPU time that it need not be taken again."""
    return stolen <= _CLEAN


def is_disturbed(stolen: Sequence[float]) -> bool:
    """Whether others took CPU time from most of the samples, each given by the share that they took."""
    return statistics.median(stolen) > _DISTURBED


def is_possible(median_us: float, floor_us: float | None, mode: Mode) -> bool:
    """Whether the device can do in that time what takes `floor_us` at least by the roofline.

    Weights that are `hot` come out of a cache, which is faster than the roofline's memory.
    """
    return mode == "hot" or floor_us is None or median_us >= _LEAST_OF_FLOOR * floor_us


def spread(estimate: Estimate) -> str:
    """The time and its interval, in words."""
    return f"{estimate.median:.1f} us has an interval of {estimate.low:.1f} to {estimate.high:.1f} us"


def why_noisy(record: Record, known_floor_us: float = 0.0) -> str | None:
    """Why the record's time cannot be believed, in one line; None when it can.

    It must be possible by the roofline of its evidence, and by what else is known of its device.
    """
    evidence = record.evidence
    estimate = Estimate(record.median_us, record.low_us, record.high_us)
    holds = estimate.low <= estimate.median <= estimate.high
    if not holds or not is_narrow(estimate):
        return spread(estimate)
    told_us = (evidence.floor_us if evidence else None) or 0.0
    return why_impossible(record.median_us, max(told_us, known_floor_us), record.mode)


def why_impossible(median_us: float, floor_us: float, mode: Mode) -> str | None:
    """Why no device does that in this time, in one line; None when it may."""
    if is_possible(median_us, floor_us, mode):
        return None
    return f"{median_us:.2f} us is not possible: the roofline's time is {floor_us:.2f} us"
