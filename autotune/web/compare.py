"""Compare: times of the same problems in two sets: devices, sweeps, drivers, or what is shipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune.families import registry
from autotune.store.pages import FastestTrial, Pages, Sweep
from autotune.store.reading import shipped_files
from autotune.store.text import RecordFile
from autotune.values.device import Device
from autotune.values.layer import Layer, Problem
from autotune.values.record import Record
from autotune.web import svg
from autotune.web.query import Query, device_key
from autotune.web.tables import columns

if TYPE_CHECKING:
    from autotune.web.site import Site

LAYERS = 20
"""Layers on a page."""
ROWS = 400
"""Rows of the table; of more problems those that changed most."""
_TABLES = {"changes": columns("n × k", "#m", "#first µs", "#second µs", "#change", "config")}


@dataclass(frozen=True, slots=True)
class Choice:
    """A set that can be compared: where its layers and its times come from."""

    key: str
    kind: str
    title: str
    device: Device | None
    layers: Callable[[], Sequence[Layer]]
    times: Callable[[Sequence[Layer]], list[FastestTrial]]


@dataclass(frozen=True, slots=True)
class Change:
    """A problem in both sets; `ratio` is the time in the second over that in the first."""

    problem: Problem
    first: FastestTrial
    second: FastestTrial
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
    choices = _choices(pages)
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
        "layers": len(common),
        "page": page,
        "last": last,
    }


def _choices(pages: Pages) -> list[Choice]:
    """Every set, of a kind the newest first."""
    devices, sweeps = pages.devices(), pages.sweeps()
    found = [_of_device(pages, device) for device in devices]
    found += [_of_file(stem, RecordFile(path)) for stem, path in _shipped()]
    drivers: dict[tuple[Device, str, str], list[int]] = {}
    for sweep in sweeps:
        drivers.setdefault((sweep.device, sweep.driver, sweep.compiler), []).append(sweep.id)
    for (device, driver, compiler), ids in drivers.items():
        title = f"{device.name}, driver {driver}, compiler {compiler}"
        found.append(_of_sweeps(pages, f"driver:{min(ids)}", "driver and compiler", title, device, ids))
    found += [
        _of_sweeps(pages, f"sweep:{sweep.id}", "sweep", _sweep_title(sweep), sweep.device, [sweep.id])
        for sweep in sweeps
    ]
    return found


def _sweep_title(sweep: Sweep) -> str:
    return f"sweep {sweep.id}, {sweep.started_at[:16].replace('T', ' ')}, {sweep.device.name}, {sweep.status}"


def _shipped() -> list[tuple[str, Any]]:
    return [(path.stem, path) for path in shipped_files()]


def _of_device(pages: Pages, device: Device) -> Choice:
    def times(layers: Sequence[Layer]) -> list[FastestTrial]:
        newest: dict[Problem, Record] = {}
        for record in pages.records(device, layers, evidence=False):
            if record.config.family in registry.families():
                newest[record.problem] = record
        return [_timed(record) for record in newest.values()]

    key = device_key(device)
    return Choice(
        f"device:{key}", "device", f"{key}, its records", device, lambda: pages.layers([device]), times
    )


def _of_file(stem: str, file: RecordFile) -> Choice:
    def times(layers: Sequence[Layer]) -> list[FastestTrial]:
        return [_timed(record) for layer in layers for record in file.records(layer)]

    def layers() -> Sequence[Layer]:
        return sorted(file.layers)

    return Choice(f"shipped:{stem}", "bundle", f"{stem}, shipped with autotune", None, layers, times)


def _of_sweeps(pages: Pages, key: str, kind: str, title: str, device: Device, ids: Sequence[int]) -> Choice:
    def times(layers: Sequence[Layer]) -> list[FastestTrial]:
        return pages.fastest(ids, layers)

    return Choice(key, kind, title, device, lambda: pages.layers([device]), times)


def _timed(record: Record) -> FastestTrial:
    return FastestTrial(record.problem, str(record.config), record.median_us, record.low_us, record.high_us)


def _pair(choices: Sequence[Choice], query: Query) -> tuple[Choice, Choice]:
    """The two that are named; where one is not, the likeliest.

    Raises:
        NoPage: there is no such set.
    """
    known = {choice.key: choice for choice in choices}
    titles = {choice.key: choice.title for choice in choices}
    devices = [choice for choice in choices if choice.kind == "device"]
    bundles = [choice for choice in choices if choice.kind == "bundle"]
    likely = devices if len(devices) > 1 else [*bundles, *devices, *choices]
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
