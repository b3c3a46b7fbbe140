"""What a sweep that was called from Python did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.console.text import layer_name, microseconds, table
from autotune.values.config import Config
from autotune.values.counts import counted
from autotune.values.layer import Problem

if TYPE_CHECKING:
    from autotune.records.lookup import Answer
    from autotune.search.sweep import Outcome

_ROWS_SHOWN = 20
_HEAD = ("layer", "m", "before", "after", "us", "default us", "gain", "config")


@dataclass(frozen=True, slots=True)
class SweptProblem:
    """What became of one problem on a device model.

    `status` is `tuned`; `skipped`, for what had its record already; `noisy`, for times that cannot be
    believed; `not begun`, when the budget ended before its turn; or `failed`. `note` says more. `before` and
    `after` are the sources of the config that runs, as of `autotune.lookup`. `config` is the one that runs
    afterwards; `median_us` is its time and `default_us` that of the default config, None without a record.
    """

    problem: Problem
    device: str
    status: str
    before: str
    after: str
    config: Config
    median_us: float | None
    default_us: float | None
    note: str = ""

    @property
    def gain(self) -> float | None:
        """How many times as fast as the default config; None without a record."""
        return self.default_us / self.median_us if self.median_us and self.default_us else None


@dataclass(frozen=True, repr=False)
class SweepReport:
    """What `autotune.sweep` did, problem by problem; `database` has the winners. Printed, it is a table."""

    problems: tuple[SweptProblem, ...]
    database: str
    elapsed_s: float

    def count(self, status: str) -> int:
        """How many problems have this status."""
        return sum(each.status == status for each in self.problems)

    @property
    def tuned(self) -> int:
        """Problems that were measured and have a winner."""
        return self.count("tuned")

    @property
    def skipped(self) -> int:
        """Problems that had their record already."""
        return self.count("skipped")

    @property
    def noisy(self) -> int:
        """Problems whose times cannot be believed; the next sweep measures them again."""
        return self.count("noisy")

    @property
    def failed(self) -> int:
        """Problems for which no config passed."""
        return self.count("failed")

    @property
    def not_begun(self) -> int:
        """Problems whose turn did not come in the budget."""
        return self.count("not begun")

    def __repr__(self) -> str:
        return "\n".join((self._summary(), *self._table()))

    def _summary(self) -> str:
        statuses = ("tuned", "skipped", "noisy", "failed", "not begun")
        counts = [f"{self.count(status)} {status}" for status in statuses if self.count(status)]
        told = f": {', '.join(counts)}" if counts else ""
        return f"{counted(len(self.problems), 'problem')}{told}; {self.elapsed_s:.0f} s, in {self.database}"

    def _table(self) -> Iterator[str]:
        # What was tuned comes first, and of the rest there is most to say of what was not skipped.
        order = sorted(self.problems, key=lambda each: (each.status != "tuned", each.status == "skipped"))
        rows = [_row(each) for each in order[:_ROWS_SHOWN]]
        if rows:
            yield table(_HEAD, rows)
        if len(order) > _ROWS_SHOWN:
            yield f"and {len(order) - _ROWS_SHOWN} more, in .problems"


def _row(each: SweptProblem) -> tuple[str, ...]:
    gain = "-" if each.gain is None else f"{each.gain:.2f}x"
    times = microseconds(each.median_us), microseconds(each.default_us)
    why = "" if each.status in ("tuned", "skipped") else f"  {each.status}: {each.note}".rstrip(": ")
    name = layer_name(each.problem.layer, ())
    return (name, str(each.problem.m), each.before, each.after, *times, gain, f"{each.config}{why}")


def swept_problem(problem: Problem, before: Answer, after: Answer, outcome: Outcome | None) -> SweptProblem:
    """What became of a problem that had one answer and then another; no outcome: it was not swept at all."""
    record = None if outcome is None else outcome.record
    if record is None:
        source, config, median_us, default_us = after.source, after.config, after.median_us, after.default_us
    else:
        source, config, median_us, default_us = "exact", record.config, record.median_us, record.default_us
    return SweptProblem(
        problem,
        before.device,
        _status(outcome),
        before.source,
        source,
        config,
        median_us,
        default_us,
        "" if outcome is None else outcome.note,
    )


def _status(outcome: Outcome | None) -> str:
    from autotune.search.fleet import OUT_OF_TIME

    if outcome is None or outcome.resumed:
        return "skipped"
    if outcome.noisy:
        return "noisy"
    if outcome.note == OUT_OF_TIME:
        return "not begun"
    return "failed" if outcome.record is None else "tuned"
