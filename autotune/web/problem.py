"""A problem on a device: every trial, the winner and its evidence, its history, the command to repeat it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from autotune.records.explanation import Explanation
from autotune.store.pages import Pages, SeenRecord, SeenTrial
from autotune.values.counts import counted
from autotune.values.device import Device
from autotune.values.errors import LayerError
from autotune.values.layer import BUCKETS, COARSE, Problem
from autotune.values.record import DEFAULT_MODE, Mode
from autotune.web import svg
from autotune.web.current import is_current
from autotune.web.query import NoPage, Query, device_key, device_named, layer_named
from autotune.web.results import dense_us
from autotune.web.tables import columns

if TYPE_CHECKING:
    from autotune.web.site import Site

_SCREENED = re.compile(r"slower in screening: ([0-9.]+) us")
_BAR = 220
_TABLES = {
    "trials": columns(
        *("role", "#µs", "#low", "#high", "~interval", "config", "#MHz", "#error / tolerance", "#sweep"),
        "reason",
    )
}


@dataclass(frozen=True, slots=True)
class TrialLine:
    """A trial as the table has it; `time_us` of one that left in screening is what it took there."""

    attempt: SeenTrial
    role: str
    time_us: float | None
    bar: Markup


def view(site: Site, pages: Pages, query: Query) -> dict[str, Any]:
    """What the template needs."""
    device = device_named(pages.devices(), query.one("device"))
    layer = layer_named(query.one("layer"), pages.layers([device]))
    try:
        problem = Problem(layer, query.number("m"))
    except LayerError as error:
        raise NoPage(f"m={query.one('m')}: {error}", "m", map(str, COARSE)) from None
    stored, attempts = pages.records_of(device, problem), pages.attempts(device, problem)
    if not stored and not attempts:
        common = _common(site, device, problem, DEFAULT_MODE)
        return {**common, "winner": None, "lines": [], "attempts": 0}
    current = [each for each in stored if is_current(each.record, device)]
    winner = next(reversed(current or stored), None)
    lines = _lines(attempts, winner)
    return {
        **_common(site, device, problem, winner.record.mode if winner else DEFAULT_MODE),
        "winner": winner,
        "stale": winner is not None and not current,
        "explanation": None if winner is None else Explanation(winner.record, winner.environment),
        "matmul_us": dense_us(device.name, problem),
        "lines": lines,
        "attempts": len(attempts),
        "strip": _strip(lines, winner),
        "history": _history(attempts),
        "sweeps": len({attempt.sweep for attempt in attempts}),
    }


def _common(site: Site, device: Device, problem: Problem, mode: Mode) -> dict[str, Any]:
    name = shlex.quote(str(problem.layer))
    which = f"--shapes {name} --m {problem.m} --db {shlex.quote(site.viewer.name)}"
    place = BUCKETS.index(problem.m) if problem.m in BUCKETS else None
    return {
        "tables": _TABLES,
        "device": device,
        "key": device_key(device),
        "problem": problem,
        "sweep_command": f"autotune sweep {which}" + ("" if mode == DEFAULT_MODE else f" --mode {mode}"),
        "recheck_command": f"autotune sweep --recheck {which}",
        "before": None if not place else BUCKETS[place - 1],
        "after": None if place is None or problem.m == BUCKETS[-1] else BUCKETS[place + 1],
    }


def _lines(attempts: Sequence[SeenTrial], winner: SeenRecord | None) -> list[TrialLine]:
    """The trials, the fastest first; those of earlier sweeps, then what left early, behind."""
    newest = max((attempt.sweep for attempt in attempts), default=0)
    timed = [(attempt, _time_us(attempt)) for attempt in attempts]
    finished = [attempt.trial for attempt in attempts if attempt.trial.status == "ok"]
    ends = [each for t in finished for each in (t.median_us, t.low_us, t.high_us) if each]
    axis = svg.Axis(ends, 6, _BAR - 6)
    lines = [
        TrialLine(attempt, _role(attempt, winner, newest), us, _bar(attempt, us, axis, winner, newest))
        for attempt, us in timed
    ]
    order = ("ok", "pruned", "wrong", "failed")

    def place(line: TrialLine) -> tuple[bool, int, float]:
        status = line.attempt.trial.status
        return line.attempt.sweep != newest, order.index(status), line.time_us or 0.0

    return sorted(lines, key=place)


def _time_us(attempt: SeenTrial) -> float | None:
    if attempt.trial.median_us is not None:
        return attempt.trial.median_us
    match = _SCREENED.fullmatch(attempt.trial.error or "")
    return float(match[1]) if match else None


def _role(attempt: SeenTrial, winner: SeenRecord | None, newest: int) -> str:
    """What the config is to the record."""
    config, status = attempt.trial.config, attempt.trial.status
    if status != "ok":
        return "screened" if status == "pruned" and _time_us(attempt) is not None else status
    if winner is None or attempt.sweep != newest:
        return "timed"
    record = winner.record
    if config == record.config:
        return "winner"
    if record.evidence is not None and str(config) in record.evidence.ties:
        return "tie"
    return "default" if config == record.default_config else "timed"


def _point(attempt: SeenTrial, us: float, role: str, y: float = 0.5) -> svg.Point:
    trial = attempt.trial
    low, high = trial.low_us or us, trial.high_us or us
    span = f", {low:.2f} to {high:.2f}" if high > low else ""
    return svg.Point(us, y, low, high, role, f"{trial.config}: {us:.2f} µs{span} ({role})")


def _bar(
    attempt: SeenTrial, us: float | None, axis: svg.Axis, winner: SeenRecord | None, newest: int
) -> Markup:
    if us is None or attempt.trial.status != "ok":
        return Markup("")
    record = None if winner is None else winner.record
    default = None if record is None else record.default_us
    within = default if default and axis.low <= default <= axis.high else None
    return svg.interval(axis, _point(attempt, us, _role(attempt, winner, newest)), _BAR, within)


def _strip(lines: Sequence[TrialLine], winner: SeenRecord | None) -> Markup:
    """A lane for each family; what left in screening is drawn hollow."""
    lanes: dict[str, list[svg.Point]] = {}
    for place, line in enumerate(reversed(lines)):  # what matters is drawn last
        if line.time_us is not None:
            y = 0.5 if line.role in ("winner", "default") else (place * 0.381966) % 1
            family = line.attempt.trial.config.family
            lanes.setdefault(family, []).append(_point(line.attempt, line.time_us, line.role, y))
    marks = []
    if winner is not None:
        record = winner.record
        marks = [("winner", record.median_us), ("default", record.default_us)]
        if record.default_us == record.median_us:
            marks = [("winner, the default", record.median_us)]
        if record.evidence is not None and record.evidence.floor_us:
            marks.append(("roofline", record.evidence.floor_us))
    timed = sum(line.time_us is not None for line in lines)
    said = f"{counted(timed, 'trial')} by family along their time in µs"
    return svg.strip(sorted(lanes.items()), marks, said) if lanes else Markup("")


def _history(attempts: Sequence[SeenTrial]) -> Markup | None:
    """The fastest trial of each sweep, with what changed between them; None with fewer than two sweeps."""
    best: dict[int, SeenTrial] = {}
    for attempt in attempts:
        us, before = attempt.trial.median_us, best.get(attempt.sweep)
        if us and (before is None or us < (before.trial.median_us or us)):
            best[attempt.sweep] = attempt
    found = [best[sweep] for sweep in sorted(best)]
    if len(found) < 2:
        return None
    points = []
    for place, attempt in enumerate(found):
        trial = attempt.trial
        us = trial.median_us or 0.0
        title = f"{attempt.started_at}: {us:.2f} µs, {trial.config}, {_versions(attempt)}"
        points.append(svg.Point(place, us, trial.low_us or us, trial.high_us or us, "s0", title))
    marks = [
        (place - 0.5, changed)
        for place in range(1, len(found))
        if (changed := _changed(found[place - 1], found[place]))
    ]
    columns = [attempt.started_at[:16].replace("T", " ") for attempt in found]
    said = "the fastest trial of each sweep in µs, the oldest sweep first"
    return svg.lines([("fastest", "s0", points)], said, columns, marks, log_y=False)


def _versions(attempt: SeenTrial) -> str:
    its = attempt.environment
    return f"driver {its.driver}, compiler {its.compiler}, torch {its.torch}, autotune {its.version}"


def _changed(before: SeenTrial, after: SeenTrial) -> str:
    """Which versions are others than in the sweep before."""
    pairs = [
        (name, getattr(before.environment, name), getattr(after.environment, name))
        for name in ("driver", "compiler", "torch", "version")
    ]
    names = {"version": "autotune"}
    return ", ".join(f"{names.get(name, name)} {new}" for name, old, new in pairs if old != new)
