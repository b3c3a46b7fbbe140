"""How much is done in any hour: of tuning, and of what may be done so many times."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_HOUR_S = 3600.0


class TuningHours:
    """Counts tuning time; `clock` gives seconds that never jump.

    A job that has begun is finished, so that its result can be trusted; what it takes beyond the budget
    counts too and delays the next one.
    """

    def __init__(self, per_hour_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_hour_s, self._clock = per_hour_s, clock
        self._spent: deque[tuple[float, float]] = deque()

    def spend(self, begin: float) -> float:
        """Count the time since `begin`, by the clock; how much that is."""
        end = self._clock()
        if self._per_hour_s is not None:
            self._spent.append((begin, end))
        return end - begin

    def wait_s(self) -> float:
        """Seconds until the hour that ends then has some of the budget left; 0: now."""
        if self._per_hour_s is None:
            return 0.0
        now = self._clock()
        while self._spent and self._spent[0][1] <= now - _HOUR_S:
            self._spent.popleft()
        over = sum(end - max(begin, now - _HOUR_S) for begin, end in self._spent) - self._per_hour_s
        if over < 0:
            return 0.0
        # As the hour moves on, the oldest spans leave it first.
        for begin, end in self._spent:
            inside = end - max(begin, now - _HOUR_S)
            if over < inside:
                return max(begin, now - _HOUR_S) + over + _HOUR_S - now
            over -= inside
        return 0.0


class Allowance:
    """Counts what is done at most `per_hour` times; `clock` gives seconds that never jump."""

    def __init__(self, per_hour: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taken: deque[float] = deque(maxlen=per_hour)

    @property
    def is_left(self) -> bool:
        """Whether it may be done once more now."""
        if len(self._taken) < (self._taken.maxlen or 0):
            return True
        return bool(self._taken) and self._clock() - self._taken[0] >= _HOUR_S

    def take(self) -> None:
        """Count that it is done now."""
        self._taken.append(self._clock())
