"""What a long command shows while it runs: on a terminal a bar, elsewhere a line from time to time."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, cast

from autotune.console.text import layer_name
from autotune.values.counts import counted

if TYPE_CHECKING:
    from autotune.checkpoints.shapes import Shape
    from autotune.console.bar import Bar
    from autotune.search.executor import At, Executor

Result = TypeVar("Result")

_EVERY_S = 30.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during work that is stored piece by piece; `stored` counts the pieces."""

    def __init__(self, stored: int) -> None:
        self.stored = stored


class ProblemProgress:
    """Counts finished problems on stderr, and says which problem each executor is at.

    A terminal and a notebook get a bar; anything else a line every `every_s` seconds. Ctrl-C leaves it as
    Interrupted, with how many of the problems are stored. Unless it `shows`, it only counts.
    """

    def __init__(
        self,
        total: int,
        executors: Sequence[Executor],
        shapes: Sequence[Shape],
        every_s: float = _EVERY_S,
        shows: bool = True,
    ) -> None:
        self._total, self._executors, self._shapes = total, executors, shapes
        self._every_s = every_s
        self._done = self._stored = 0
        self._stage = "starts"
        self._bar: Bar | None = None
        self._over = threading.Event()
        self._reporter: threading.Thread | None = None
        self._shows = shows

    def __enter__(self) -> ProblemProgress:
        if self._shows and _has_room_for_a_bar():
            from autotune.console.bar import Bar

            self._bar = Bar(self._total, self._now)
            self._bar.start()
        elif self._shows:
            self._reporter = threading.Thread(target=self._report, name="progress", daemon=True)
            self._reporter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._reporter is not None:
            self._over.set()
            self._reporter.join()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(self._stored) from None

    def stage(self, stage: str, done: int, total: int) -> None:
        """Say what goes on while no problem is measured: `compile 12/40`."""
        self._stage = f"{stage} {done}/{total}" if done < total else ""

    def show(self, text: str, err: bool = False) -> None:
        """Print a result, or to stderr a message. A bar on the same terminal makes room for it."""
        paused = self._bar if err or sys.stdout.isatty() else None
        if paused is not None:
            paused.stop()
        say(text, err)
        if paused is not None:
            paused.start()

    def follow(
        self,
        running: Iterator[Result],
        is_stored: Callable[[Result], bool],
        text: Callable[[Result], str] | None = None,
    ) -> list[Result]:
        """All that a sweep yields, each printed as it comes, if there is a text of it."""
        results: list[Result] = []
        with contextlib.closing(cast("Generator[Result, None, None]", running)):
            for result in running:
                results.append(result)
                self._stored += is_stored(result)
                self._done += 1
                if self._bar is not None:
                    self._bar.advance()
                if text is not None:
                    self.show(text(result))
        return results

    def _now(self) -> str:
        at = [each.at for each in self._executors]
        busy = [self._at(each) for each in at if each is not None]
        more = f"{counted(len(busy), 'device')}, " if busy[1:] else ""
        return more + busy[0] if busy else self._stage

    def _at(self, at: At) -> str:
        problem, tried = at.problem, "" if at.done is None else f"{at.done}/"
        # The layer comes last, because its name may be too long for the line.
        return f"m={problem.m}: {tried}{at.configs} configs of {layer_name(problem.layer, self._shapes)}"

    def _report(self) -> None:
        begin, of = time.monotonic(), counted(self._total, "problem")
        while not self._over.wait(self._every_s):
            seconds = time.monotonic() - begin
            parts = (f"{self._done}/{of}, {seconds:.0f} s", self._now())
            say("; ".join(filter(None, parts)), err=True)


def say(text: str, err: bool = False) -> None:
    """Print a line at once, to stdout or to stderr."""
    print(text, file=sys.stderr if err else sys.stdout, flush=True)


def _has_room_for_a_bar() -> bool:
    """Whether stderr is a terminal, or a notebook that can draw what changes."""
    in_notebook = "ipykernel" in sys.modules and not sys.stderr.isatty()
    return find_spec("ipywidgets") is not None if in_notebook else sys.stderr.isatty()
