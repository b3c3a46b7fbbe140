"""The progress bar, the last line of a terminal. Imported where there is one, for the sake of rich."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

_WIDTH = 12


class _Now(ProgressColumn):
    """What goes on now, in what the other columns leave of the line."""

    def __init__(self, now: Callable[[], str]) -> None:
        super().__init__(Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        self._now = now

    def render(self, task: Task) -> Text:  # noqa: ARG002
        return Text(self._now())


class Bar:
    """Counts steps in one line on stderr, beside what `now` says, until it is stopped and leaves no trace.

    What is logged meanwhile appears above it. Whoever prints stops it first: click writes past rich.
    """

    def __init__(self, total: int, now: Callable[[], str]) -> None:
        whole = Column(no_wrap=True)
        self._progress = Progress(
            MofNCompleteColumn(table_column=whole),
            BarColumn(_WIDTH, table_column=whole),
            TimeRemainingColumn(table_column=whole),
            _Now(now),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            expand=True,
        )
        self._task = self._progress.add_task("", total=total)

    def start(self) -> None:
        """Draw it."""
        self._progress.start()

    def stop(self) -> None:
        """Wipe it away; it may be started again."""
        self._progress.stop()

    def advance(self) -> None:
        """One step more is done."""
        self._progress.advance(self._task)
