"""Compare: times of the same problems in two sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune.store.compared import TimedProblem
from autotune.store.pages import Pages
from autotune.values.device import Device
from autotune.values.layer import Problem
from autotune.web import svg
from autotune.web.query import Query, device_key, scheme_of
from autotune.web.sets import Choice, choices_of
from autotune.web.tables import columns

if TYPE_CHECKING:
    from autotune.web.site import Site

LAYERS = 20
"""Layers on a page."""
ROWS = 400
"""Rows of the table; of more problems those that changed most."""
_TABLES = {"changes": columns("n × k", "#m", "#first µs", "#second µs", "#change", "config")}


@dataclass(frozen=True, slots=True)
class Change:
    """A problem in both sets; `ratio` is the time in the second over that in the first."""

    problem: Problem
    first: TimedProblem
    second: TimedProblem
    href: str

    @property
    def ratio(self) -> float:
        """Below 1 where the second is faster."""
        return self.second.median_us / self.first.median_us

    @property
    def verdict(self) -> str:
        """`faster` or `slower` where the intervals do not touch, else `same`."""
        if self.second.high_us < self.first.low_us:
            return "faster"
        return "slower" if self.second.low_us > self.first.high_us else "same"


def view(site: Site, pages: Pages, query: Query) -> dict[str, Any]:
    """What the template needs."""
    choices = choices_of(pages)
    if len(choices) < 2:
        return {"choices": choices, "first": None, "second": None, "changes": [], "tables": _TABLES}
    first, second = _pair(choices, query)
    there = set(second.layers())
    common = [layer for layer in first.layers() if layer in there]
    last = max(1, math.ceil(len(common) / LAYERS))
    page = query.number("page", last)
    part = common[LAYERS * (page - 1) : LAYERS * page]
    before, after = ({each.problem: each for each in its.times(part)} for its in (first, second))
    device = second.device or first.device
    changes = [
        Change(problem, before[problem], after[problem], _href(site, device, problem))
        for problem in before.keys() & after.keys()
    ]
    changes.sort(key=lambda change: (change.verdict == "same", -abs(math.log(change.ratio)), change.problem))
    ratios = [math.log(change.ratio) for change in changes]
    return {
        "tables": _TABLES,
        "choices": choices,
        "first": first,
        "second": second,
        "changes": changes[:ROWS],
        "all": len(changes),
        "only": (len(before.keys() - after.keys()), len(after.keys() - before.keys())),
        "verdicts": {name: sum(c.verdict == name for c in changes) for name in ("faster", "slower", "same")},
        "mean": math.exp(sum(ratios) / len(ratios)) if ratios else None,
        "scatter": _scatter(changes, first, second),
        "schemes": sorted({scheme_of(change.problem.layer) for change in changes}),
        "layers": len(common),
        "page": page,
        "last": last,
    }


def _pair(choices: Sequence[Choice], query: Query) -> tuple[Choice, Choice]:
    """The two that are named; where one is not, the likeliest.

    Raises:
        NoPage: there is no such set.
    """
    known = {choice.key: choice for choice in choices}
    titles = {choice.key: choice.title for choice in choices}
    devices = [choice for choice in choices if choice.kind == "device"]
    shipped = [choice for choice in choices if choice.kind == "shipped"]
    likely = devices if len(devices) > 1 else [*shipped, *devices, *choices]
    second = query.one("b")
    one = known[query.choice("a", titles, next(c.key for c in likely if c.key != second))]
    other = known[query.choice("b", titles, next(c.key for c in likely if c.key != one.key))]
    return one, other


def _href(site: Site, device: Device | None, problem: Problem) -> str:
    if device is None:
        return ""
    return site.link("problem", device=device_key(device), layer=problem.layer, m=problem.m)


def _scatter(changes: Sequence[Change], first: Choice, second: Choice) -> Any:
    points = [
        svg.Point(
            change.first.median_us,
            change.second.median_us,
            0,
            0,
            change.verdict,
            f"{change.problem}: {change.first.median_us:.2f} to {change.second.median_us:.2f} µs",
            change.href,
        )
        for change in reversed(changes)
    ]
    return svg.scatter(points, "first, µs", "second, µs", f"{first.title} against {second.title}, µs")
