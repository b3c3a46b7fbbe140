"""Queue and fleet: jobs by state, who works on what now, what models missed, and how fast it goes."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autotune.daemon.endpoint import HOST, PORT
from autotune.prediction.finding import predictor_for
from autotune.records.misses import Miss, miss_file, read
from autotune.search.demand import ASKED
from autotune.search.saving import saved_us
from autotune.store.pages import Pages
from autotune.values.device import Device
from autotune.values.job import STATES, Job, Worker
from autotune.values.paths import sqlite_path
from autotune.web import svg
from autotune.web.query import NoPage, Query
from autotune.web.tables import columns

if TYPE_CHECKING:
    from autotune.web.site import Site

JOBS = 50
"""On a page."""
_TABLES = {
    "workers": columns("device", "worker", "state", "job", "#seen, s ago"),
    "jobs": columns("#job", "device", "problem", "#would save, s", "#attempts", "worker", "reason"),
    "misses": columns("device", "problem", "#calls", "#would save, s", "ran with"),
}
_SILENT_S = 60.0
_HEALTH_S = 0.5
_MISSES = 30
_HOURS = 24


@dataclass(frozen=True, slots=True)
class Working:
    """A worker, the job that it has, and the seconds since it was heard of."""

    worker: Worker
    job: Job | None
    age_s: float

    @property
    def silent(self) -> bool:
        """Whether it should have been heard of since."""
        return self.worker.state != "stopped" and self.age_s > _SILENT_S


@dataclass(frozen=True, slots=True)
class Missed:
    """Calls that ran without a record, noted and not queued yet, with the seconds that one may save."""

    miss: Miss
    calls: int
    saved_s: float


def view(site: Site, pages: Pages, query: Query) -> dict[str, Any]:
    """What the template needs, and its live part."""
    counts = pages.job_counts()
    state = query.choice("state", STATES)
    page = query.number("page")
    jobs = pages.jobs(state, JOBS + 1, JOBS * (page - 1))
    if page > 1 and not jobs:
        raise NoPage(f"page='{page}' of the jobs that are {state} is empty", "page", ["1"])
    now = pages.clock()
    return {
        "tables": _TABLES,
        "counts": {name: counts.get(name, 0) for name in STATES},
        "state": state,
        "jobs": jobs[:JOBS],
        "more": len(jobs) > JOBS,
        "page": page,
        "asked": ASKED / 2,
        "now": now,
        "workers": _workers(pages, now),
        "misses": _misses(site, pages),
        "hours": _hours(pages, now),
        "daemon": _daemon() if site.live else None,
    }


def _workers(pages: Pages, now: float) -> list[Working]:
    return [
        Working(each, None if each.job_id is None else pages.job(each.job_id), max(0.0, now - each.last_seen))
        for each in pages.workers()
    ]


def _misses(site: Site, pages: Pages) -> Sequence[Missed]:
    """What the file beside the database notes, what would save most first."""
    calls: Counter[Miss] = Counter()
    try:
        for miss in read(miss_file(site.url)):
            calls[replace(miss, source_hash="", calls=0)] += miss.calls
    except OSError:
        return []  # there is no such file, which is as it should be
    known = {(device.name, device.arch): device for device in pages.devices()}
    top = [(miss, count, known.get((miss.device, miss.arch))) for miss, count in calls.most_common(_MISSES)]
    wanted: dict[Device, set[int]] = {}
    for miss, _, device in top:
        if device is not None:
            wanted.setdefault(device, set()).add(miss.problem.m)
    records = {device: pages.like(device, tokens) for device, tokens in wanted.items()}
    predictors = {device: predictor_for(device, sqlite_path(site.url)) for device in wanted}
    found = []
    for miss, count, device in top:
        told = ([],) if device is None else (records[device], predictors[device])
        found.append(Missed(miss, count, count * saved_us(miss.problem, miss.source, *told) / 1e6))
    return sorted(found, key=lambda missed: -missed.saved_s)


def _hours(pages: Pages, now: float) -> Any:
    """Problems that were stored in each of the last hours."""
    last = int(now // 3600)
    hours = range(last - _HOURS + 1, last + 1)
    stored = pages.stored_since(hours[0] * 3600.0)
    values = [(f"{hour % 24:02}:00", float(stored.get(hour, 0))) for hour in hours]
    total = int(sum(value for _, value in values))
    return {"chart": svg.bars(values, "problems stored in each hour of the last day, UTC"), "total": total}


def _daemon() -> dict[str, Any]:
    """What the daemon of this machine says of itself at its usual port."""
    address = f"http://{HOST}:{PORT}/healthz"
    try:
        with urllib.request.urlopen(address, timeout=_HEALTH_S) as answer:
            said = json.loads(answer.read(1 << 16))
    except urllib.error.HTTPError as error:
        said = _parsed(error.read(1 << 16))
    except (OSError, ValueError):
        return {"runs": False}
    if not isinstance(said, dict) or not isinstance(said.get("wrong"), list):
        return {"runs": False}
    return {"runs": True, "wrong": [str(each)[:200] for each in said["wrong"][:5]]}


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
