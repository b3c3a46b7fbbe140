"""So many times in any hour."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_HOUR_S = 3600.0


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
