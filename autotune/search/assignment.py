"""Which executor tunes which problem next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection

from autotune.values.layer import Layer, Problem


class Assignment:
    """Problems, each of which one of several threads takes, once its kernels are there.

    A worker keeps the operands of few layers, so a thread stays with its layer, then goes to one that nobody
    has, and while there is none helps where most is left. Few tokens come first; several threads turn to many
    when every layer has somebody: those take longest, and what all wait for in the end is to be short.
    """

    def __init__(self, problems: Collection[Problem], threads: int) -> None:
        self._changed = threading.Condition()
        self._ready: dict[Layer, deque[Problem]] = {problem.layer: deque() for problem in problems}
        self._at: dict[int, Layer] = {}
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
            return problems.popleft() if self.threads == 1 or self._free() else problems.pop()

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
        ready, free = self._with_problems(), self._free()
        others = {at for other, at in self._at.items() if other != who}
        if self._at.get(who) not in ready or (free and self._at[who] in others):
            self._at[who] = max(free or ready, key=self._operations_left)
        return self._at[who]

    def _with_problems(self) -> list[Layer]:
        return [layer for layer, problems in self._ready.items() if problems]

    def _free(self) -> list[Layer]:
        """Layers with problems that nobody is at."""
        return [layer for layer in self._with_problems() if layer not in self._at.values()]

    def _operations_left(self, layer: Layer) -> int:
        return sum(problem.operations for problem in self._ready[layer])
