"""Coverage: for each layer and number of tokens, how good the answer is that a model gets, and why."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autotune.bench.noise import why_noisy
from autotune.checkpoints.shapes import PRESETS, parse_shapes
from autotune.families import registry
from autotune.records.lookup import Answer, Lookup
from autotune.store.pages import Pages
from autotune.store.reading import shipped_files
from autotune.store.text import RecordFile
from autotune.values.device import Device
from autotune.values.errors import DeviceError, LayerError
from autotune.values.layer import BUCKETS, COARSE, Layer, Problem, buckets_for, buckets_on
from autotune.values.paths import sqlite_path
from autotune.values.record import SERVED, Record
from autotune.web.current import is_current
from autotune.web.query import SIDE_BY_SIDE, Query, chosen_devices, device_key, scheme_of
from autotune.web.results import dense_us

if TYPE_CHECKING:
    from autotune.web.site import Site

ROWS = 20
"""Layers on a page, of all devices together: look-up takes 6 ms for all buckets of one, 35 if it predicts."""
TOKENS = {"coarse": "powers of two", "all": "every bucket"}
_EVERY = "all"
_NO_FILE = f"{os.devnull}/none"
"""In place of a server, which no model reads."""
_MARKS = {"exact": "", "shipped": "·", "predicted": "≈", "default": "–", "stale": "×", "noisy": "~"}
_SAID = {
    "exact": "a record of this database",
    "shipped": "a record that autotune carries",
    "predicted": "the config that is predicted to be the fastest",
    "default": "the default config",
    "stale": "a record of a kernel that this autotune no longer makes",
    "noisy": "a record whose time cannot be believed",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """What colours a cell: a ratio, and the edges between its nine colours."""

    title: str
    said: str
    edges: tuple[float, ...]
    percent: bool = False

    def level(self, value: float) -> int:
        """Which of the colours."""
        return sum(value >= edge for edge in self.edges)

    def text(self, value: float) -> str:
        """The value as a cell shows it."""
        return f"{100 * value:.0f}" if self.percent else f"{value:.2f}" if value < 9.995 else f"{value:.0f}"

    def legend(self) -> list[str]:
        """What each colour means."""
        names = [f"{100 * edge:.0f} %" if self.percent else f"{edge:g}×" for edge in self.edges]
        return [f"below {names[0]}", *(f"from {name}" for name in names)]


METRICS: Mapping[str, Metric] = {
    "gain": Metric(
        "gain over default",
        "time of the default config over that of the answer",
        (1.005, 1.02, 1.05, 1.1, 1.2, 1.4, 1.8, 2.5),
    ),
    "dense": Metric(
        "speed-up over fp16",
        "time of torch's fp16 matmul over that of the answer, where benchmarks/results has both",
        (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0),
    ),
    "roofline": Metric(
        "fraction of the roofline",
        "the roofline's time over that of the answer",
        (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        percent=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer at one number of tokens; `level` is None where there is nothing to measure by."""

    m: int
    state: str
    level: int | None
    text: str
    mark: str
    said: str
    href: str


@dataclass(frozen=True, slots=True)
class MapRow:
    """A layer and its cells; None where the next larger bucket answers."""

    layer: Layer
    name: str
    cells: Sequence[Cell | None]


def view(site: Site, pages: Pages, query: Query) -> dict[str, Any]:
    """What the template needs: a map for each chosen device, and what can be chosen."""
    devices, chosen = chosen_devices(pages, query)
    metric = query.choice("metric", {name: each.title for name, each in METRICS.items()})
    stored = pages.layers(chosen)
    models = _models(stored)
    model = query.choice("model", [_EVERY, *models])
    layers = stored if model == _EVERY else models[model]
    rows = max(4, ROWS // max(len(chosen), 1))
    last = max(1, math.ceil(len(layers) / rows))
    page = query.number("page", last)
    tokens = query.choice("tokens", TOKENS, "coarse" if len(chosen) > 1 else "all")
    part = layers[rows * (page - 1) : rows * page]
    names = {} if model == _EVERY else _projections(model)
    maps = [_map(site, pages, device, part, tokens == "all", metric, names) for device in chosen]
    counts = Counter(cell.state for each in maps for row in each["rows"] for cell in row.cells if cell)
    return {
        "devices": [(device_key(device), device in chosen) for device in devices],
        "chosen": [device_key(device) for device in chosen],
        "side_by_side": SIDE_BY_SIDE,
        "maps": maps,
        "metric": metric,
        "metrics": METRICS,
        "model": model,
        "models": [_EVERY, *models],
        "tokens": tokens,
        "grains": TOKENS,
        "page": page,
        "last": last,
        "layers": len(layers),
        "states": [(state, count, _MARKS[state], _SAID[state]) for state, count in counts.most_common()],
    }


def _map(
    site: Site,
    pages: Pages,
    device: Device,
    layers: Sequence[Layer],
    fine: bool,
    metric: str,
    names: Mapping[tuple[int, int], str],
) -> dict[str, Any]:
    """The cells of one device."""
    records: dict[Layer, dict[int, Record]] = {}
    for record in pages.records(device, layers):
        if record.config.family in registry.families():
            its = records.setdefault(record.problem.layer, {})
            before = its.get(record.problem.m)
            if before is None or _order(record, device) >= _order(before, device):
                its[record.problem.m] = record
    sensible = buckets_on(device.kind)
    columns = [m for m in (BUCKETS if fine else COARSE) if m in sensible or _any_has(records, m)]
    lookup = Lookup(device, _NO_FILE if sqlite_path(site.url) is None else site.url)
    files = [RecordFile(path) for path in shipped_files()]
    cells = [
        _cells(
            site, device, each, columns, records.get(each, {}), _shipped(files, device, each), lookup, metric
        )
        for each in layers
    ]
    shown = [place for place in range(len(columns)) if any(row[place] for row in cells)]
    rows = [
        MapRow(layer, names.get((layer.n, layer.k), ""), [row[place] for place in shown])
        for layer, row in zip(layers, cells, strict=True)
    ]
    same = {scheme_of(layer) for layer in layers}
    return {
        "device": device,
        "key": device_key(device),
        "columns": [columns[place] for place in shown],
        "rows": [row for row in rows if any(row.cells)],
        "scheme": next(iter(same)) if len(same) == 1 else None,
        "wide": len(shown) > 16,
    }


def _order(record: Record, device: Device) -> tuple[bool, int, str]:
    """A record of today's kernels goes first, then the mode that look-up prefers, then the newest."""
    return is_current(record, device), -SERVED.index(record.mode), record.created_at


def _any_has(records: Mapping[Layer, Mapping[int, Record]], m: int) -> bool:
    return any(m in its for its in records.values())


def _cells(
    site: Site,
    device: Device,
    layer: Layer,
    columns: Sequence[int],
    records: Mapping[int, Record],
    shipped: Collection[int],
    lookup: Lookup,
    metric: str,
) -> list[Cell | None]:
    current = {m for m, record in records.items() if is_current(record, device)}
    answers = _answers(lookup, layer, [m for m in columns if _is_asked(m, current, shipped)])
    cells: list[Cell | None] = []
    for m in columns:
        record, answer = records.get(m), answers.get(m)
        if record is None and answer is None:
            cells.append(None)
            continue
        state = _state(record if m in current else None, record is not None, answer)
        measured = record if m in current else None
        if measured is None and answer is not None:
            measured = _measured(answer, lookup, metric)
        cells.append(_cell(site, device, Problem(layer, m), state, measured, metric))
    return cells


def _shipped(files: Sequence[RecordFile], device: Device, layer: Layer) -> set[int]:
    """The numbers of tokens for which autotune carries a record of the layer."""
    found = (record for file in files for record in file.records(layer))
    return {record.problem.m for record in found if record.device == device.name}


def _is_asked(m: int, current: Collection[int], shipped: Collection[int]) -> bool:
    """Whether anything but this database's own records, as of the next larger bucket, can answer m."""
    return m not in current and (m in shipped or not any(bucket in current for bucket in buckets_for(m)))


def _answers(lookup: Lookup, layer: Layer, tokens: Sequence[int]) -> dict[int, Answer]:
    """The answers that are of these buckets themselves, not of the next larger one."""
    if not tokens:
        return {}
    try:
        return {answer.problem.m: answer for answer in lookup.answers(layer, tokens)}
    except DeviceError:  # no family of the device can do it
        return {}


def _state(current: Record | None, stored: bool, answer: Answer | None) -> str:
    if current is not None:
        return "noisy" if why_noisy(current) else "exact"
    if answer is not None and answer.source in ("exact", "shipped"):
        return answer.source
    return "stale" if stored or answer is None else answer.source


def _measured(answer: Answer, lookup: Lookup, metric: str) -> Record | None:
    """The record of the problem itself that answers, with its evidence where the colour needs it."""
    if answer.record is None or answer.source not in ("exact", "shipped"):
        return None
    explained = lookup.explain(answer) if metric == "roofline" else None
    return explained.record if explained else answer.record


def _cell(
    site: Site, device: Device, problem: Problem, state: str, record: Record | None, metric: str
) -> Cell:
    value = None if record is None else _value(record, metric)
    chosen = METRICS[metric]
    text = "" if value is None else chosen.text(value)
    told = f"{text} %" if chosen.percent else f"{text}×"
    time = "" if record is None else f", {record.median_us:.2f} µs, {record.config}"
    said = f"m={problem.m}: {'not known' if value is None else told}, {_SAID[state]}{time}"
    href = site.link("problem", device=device_key(device), layer=problem.layer, m=problem.m)
    return Cell(
        problem.m, state, None if value is None else chosen.level(value), text, _MARKS[state], said, href
    )


def _value(record: Record, metric: str) -> float | None:
    if metric == "gain":
        return record.default_us / record.median_us
    if metric == "dense":
        matmul_us = dense_us(record.device, record.problem)
        return None if matmul_us is None else matmul_us / record.median_us
    evidence = record.evidence
    return None if evidence is None or evidence.floor_us is None else evidence.floor_us / record.median_us


def _models(stored: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The presets of which layers are stored: these and, as the first of them is, those that are missing."""
    found: dict[str, list[Layer]] = {}
    for name in PRESETS:
        sizes = list(_projections(name))
        its = [layer for layer in stored if (layer.n, layer.k) in sizes]
        if its:
            known = {(layer.n, layer.k) for layer in its}
            added = [_sized(its[0], *size) for size in sizes if size not in known]
            every = [*its, *(layer for layer in added if layer)]
            found[name] = sorted(every, key=lambda layer: sizes.index((layer.n, layer.k)))
    return found


def _sized(layer: Layer, n: int, k: int) -> Layer | None:
    try:
        return replace(layer, n=n, k=k)
    except LayerError:  # its one group of all k is not theirs
        return None


def _projections(model: str) -> dict[tuple[int, int], str]:
    """The names of a preset's fused layers, by n and k."""
    return {(shape.layer.n, shape.layer.k): ", ".join(shape.projections) for shape in parse_shapes(model)}
