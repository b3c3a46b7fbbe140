"""Which executor tunes which problem next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection

from autotune.layer import Layer, Problem


class Assignment:
    """Problems, each of which one of several threads takes, once its kernels are there.

    A worker keeps the operands of its layer, so a thread stays with its layer, then goes to one that nobody
    has, and while there is none helps where most is left. Few tokens come first; who helps takes many first,
    so that the two meet in the middle and what everybody waits for in the end is short.
    """

    def __init__(self, problems: Collection[Problem], threads: int) -> None:
        self._changed = threading.Condition()
        self._ready: dict[Layer, deque[Problem]] = {problem.layer: deque() for problem in problems}
        self._at: dict[int, Layer] = {}
        self._helpers: set[int] = set()
        self._stopped = False
        self.unfinished = len(problems)
        self.threads = threads

    def add(self, problem: Problem) -> None:
        """It can be tuned now."""
        with self._changed:
            layer = problem.layer
            self._ready[layer] = deque(sorted((*self._ready[layer], problem)))
            self._changed.notify_all()

    def take(self, who: int) -> Problem | None:
        """The next problem of this thread, as soon as there is one; None when all are finished or to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self.unfinished or any(self._ready.values()))
            if self._stopped or not self.unfinished:
                return None
            problems = self._ready[self._layer(who)]
            return problems.pop() if who in self._helpers else problems.popleft()

    def finish(self) -> None:
        """A problem that was taken is finished."""
        with self._changed:
            self.unfinished -= 1
            self._changed.notify_all()

    def leave(self, who: int, problem: Problem | None) -> None:
        """The thread ends, and another one is to take the problem that it was at."""
        with self._changed:
            self.threads -= 1
            self._at.pop(who, None)
        if problem is not None:
            self.add(problem)

    def stop(self) -> None:
        """Nobody takes any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _layer(self, who: int) -> Layer:
        ready = [layer for layer, problems in self._ready.items() if problems]
        free = [layer for layer in ready if layer not in self._at.values()]
        if self._at.get(who) not in ready or (free and who in self._helpers):
            self._helpers.discard(who)
            if not free:
                self._helpers.add(who)
            self._at[who] = max(free or ready, key=self._operations_left)
        return self._at[who]

    def _operations_left(self, layer: Layer) -> int:
        return sum(problem.operations for problem in self._ready[layer])
