"""How long a piece of work may take."""

from __future__ import annotations

import time


class Budget:
    """Seconds that a piece of work may take, from now; None is no limit.

    A `part` of it is a budget of its own: what extends it extends the whole.
    """

    def __init__(self, seconds: float | None, whole: Budget | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._whole = whole

    @property
    def left_s(self) -> float | None:
        """Seconds that are left, at least 0; None without a limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def spent(self) -> bool:
        """Whether the time is up."""
        return self.left_s == 0.0

    def part(self, share: float) -> Budget:
        """The budget of a share, from 0 to 1, of what is left."""
        left_s = self.left_s
        return Budget(None if left_s is None else left_s * share, self)

    def extend(self, seconds: float) -> None:
        """Do not count so many seconds, in which nothing could be done."""
        if self._end is not None:
            self._end += seconds
        if self._whole is not None:
            self._whole.extend(seconds)
