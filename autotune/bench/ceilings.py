"""What a device gives at most, told from what is known of it: nothing is measured, and no torch imported."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate

from autotune.values.layer import Problem
from autotune.values.record import Record

_FASTEST = {
    80: (2_039e3, 312e6),
    86: (1_008e3, 155e6),
    89: (1_008e3, 364e6),
    90: (4_900e3, 990e6),
    100: (8_000e3, 2_500e6),
    120: (1_792e3, 504e6),
}
"""From each arch on, bytes that are read and operations that are done in 16 bits, summing in fp32, in a
microsecond, as data sheets name them of the fastest GPU: A100 80GB; RTX 3090 Ti and RTX A6000; RTX 4090 and
RTX 6000 Ada; GH200; B300; RTX PRO 6000."""


class KnownFloors:
    """The least times of problems on a device model, as what is known here of its arch and records allows.

    A record with a floor tells of any other problem, however much the device gives: what moves at least as
    many operations a byte takes at least as long for each byte, and what moves as many or fewer takes at
    least as long for each operation. Of several records the one that makes the device the fastest counts,
    because others may have held it down when the floor was measured.
    """

    def __init__(self, arch: str, records: Iterable[Record]) -> None:
        self._fastest = _fastest(arch)
        found: dict[str, list[tuple[float, float, float]]] = {}
        for record in records:
            floor_us = record.evidence.floor_us if record.evidence else None
            if floor_us:
                problem = record.problem
                rates = problem.moved_bytes / floor_us, problem.operations / floor_us
                found.setdefault(problem.layer.dtype, []).append((_intensity(problem), *rates))
        self._known = {dtype: _Rates(sorted(told)) for dtype, told in found.items()}

    def floor_us(self, problem: Problem) -> float:
        """The time that the problem takes at least, 0 where nothing is known."""
        known = self._known.get(problem.layer.dtype)
        rates = [self._fastest] if self._fastest else []
        if known is not None:
            rates.append(known.around(_intensity(problem)))
        floors = [
            amount / rate
            for pair in rates
            for amount, rate in zip((problem.moved_bytes, problem.operations), pair, strict=True)
            if rate
        ]
        return max(floors, default=0.0)


class _Rates:
    """Bytes and operations per microsecond that records tell, sorted by their operations per byte."""

    def __init__(self, told: list[tuple[float, float, float]]) -> None:
        self._intensities = [intensity for intensity, _, _ in told]
        self._bytes = list(accumulate((read for _, read, _ in told), max))
        self._operations = list(accumulate((done for _, _, done in reversed(told)), max))[::-1]

    def around(self, intensity: float) -> tuple[float, float]:
        """The highest of the bytes up to this intensity, and of the operations from it on; 0 for none."""
        below, above = bisect_right(self._intensities, intensity), bisect_left(self._intensities, intensity)
        read = self._bytes[below - 1] if below else 0.0
        return read, self._operations[above] if above < len(self._operations) else 0.0


def _intensity(problem: Problem) -> float:
    return problem.operations / problem.moved_bytes


def _fastest(arch: str) -> tuple[float, float] | None:
    """Of the arch's GPUs, None where none is known."""
    match = re.fullmatch(r"sm_([0-9]{2,3})", arch)
    number = int(match[1]) if match else 0
    known = [each for each in _FASTEST if each <= number and each // 10 == number // 10]
    return _FASTEST[max(known)] if known else None
