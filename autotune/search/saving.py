"""What a record is expected to save of what models ran without one, for the queue and for who shows it."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from statistics import fmean
from typing import TYPE_CHECKING

from autotune.families import registry
from autotune.values.errors import DeviceError
from autotune.values.layer import Problem
from autotune.values.record import Record

if TYPE_CHECKING:
    from autotune.prediction.predictor import Predictor

_OPERATIONS_PER_BYTE = 200
"""GPUs multiply 150 to 300 16-bit numbers in the time in which they read a byte."""
_BYTES_PER_US = 1e6
_LEAST_SHARE = 0.005


def saved_us(
    problem: Problem, source: str, records: Sequence[Record], predictor: Predictor | None = None
) -> float:
    """What a record of the problem is expected to save at each call that `source` answered, in microseconds.

    A fit of the device tells, by what the sources `predicted` and `default` run and by how far off it may be;
    where there is none, the device's records do.
    """
    expected = None if predictor is None else _expected_us(problem, source, predictor)
    return _by_records_us(problem, records) if expected is None else expected


def _expected_us(problem: Problem, source: str, predictor: Predictor) -> float | None:
    from autotune.prediction.saving import saving_us  # needs numpy

    if source not in ("predicted", "default"):
        return None
    try:
        running = None if source == "predicted" else registry.default_config(problem, predictor.device)
    except DeviceError:  # a note may be of anything
        return None
    return saving_us(predictor, problem, running)


def _by_records_us(problem: Problem, records: Sequence[Record]) -> float:
    """The time of the default config times the share of it that tuning takes away.

    The time is that of the nearest record's default config (in octaves of m, n and k together), in proportion
    to the work: among the shipped records of a H200, each left out in turn, it is right within a factor of
    1.3 for nine of ten. The share is the mean of the bucket's records, or of all where it has none; a mean
    and not a median, because the sum over many problems is what counts. What is not tried may always gain a
    little.
    """
    work = _work_bytes(problem)
    if not records:
        return _LEAST_SHARE * work / _BYTES_PER_US
    near = min(records, key=lambda record: _octaves(record.problem, problem))
    default_us = near.default_us * work / _work_bytes(near.problem)
    alike = [record for record in records if record.problem.m == problem.m] or records
    share = fmean(1 - record.median_us / record.default_us for record in alike)
    return default_us * max(share, _LEAST_SHARE)


def _work_bytes(problem: Problem) -> float:
    return max(problem.moved_bytes, problem.operations / _OPERATIONS_PER_BYTE)


def _octaves(a: Problem, b: Problem) -> float:
    ratios = ((a.m, b.m), (a.layer.n, b.layer.n), (a.layer.k, b.layer.k))
    return sum(abs(log2(one / other)) for one, other in ratios)
