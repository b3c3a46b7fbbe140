"""A progress bar with the time left, on a terminal only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Result = TypeVar("Result")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during work that is stored piece by piece; `stored` counts the pieces."""

    def __init__(self, stored: int) -> None:
        self.stored = stored


class ProblemProgress:
    """Counts finished problems on stderr; silent where stderr is not a terminal.

    Ctrl-C leaves it as Interrupted, with how many of the problems are stored.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._stored = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProblemProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("problems", total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(self._stored) from None

    def stage(self, stage: str, done: int, total: int) -> None:
        """Say what goes on before and between problems: `compile 12/40`."""
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, description=f"{stage} {done}/{total}" if done < total else "problems"
            )

    def follow(
        self, running: Iterator[Result], is_stored: Callable[[Result], bool], show: Callable[[Result], None]
    ) -> list[Result]:
        """All that a sweep yields, each shown as it comes."""
        results: list[Result] = []
        with contextlib.closing(cast("Generator[Result, None, None]", running)):
            for result in running:
                results.append(result)
                self._stored += is_stored(result)
                show(result)
                if self._bar is not None and self._task is not None:
                    self._bar.advance(self._task)
        return results
