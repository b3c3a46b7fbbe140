"""Figures for people who decide: a model's layers beside other packages, and whole models in vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune.store.pages import Pages
from autotune.web import svg
from autotune.web.query import Query
from autotune.web.results import Speeds, Spread, Sums, speeds, sums
from autotune.web.tables import columns

if TYPE_CHECKING:
    from autotune.web.site import Site

_TITLES = {
    "stored": "autotune",
    "default": "autotune, default",
    "matmul": "fp16 matmul",
    "humming": "Humming",
    "machete": "Machete",
    "marlin": "Marlin",
    "gemlite": "GemLite",
    "torch_int4": "torch int4",
    "roofline": "roofline",
    "tuned": "autotune",
    "untuned": "autotune, untuned",
    "fp16": "fp16",
}
_KINDS = {
    **{"stored": "s0", "tuned": "s0", "default": "s1", "untuned": "s1", "humming": "s2", "torch_int4": "s3"},
    **{"machete": "s4", "marlin": "s5", "gemlite": "s6", "matmul": "s7", "fp16": "s7", "roofline": "s8"},
}


def view(site: Site, pages: Pages, query: Query) -> dict[str, Any]:  # noqa: ARG001
    """What the template needs."""
    found = {f"sums{place}": _summed(each) for place, each in enumerate(sums(), 1)}
    served = {f"served{place}": _served(each) for place, each in enumerate(speeds(), 1)}
    return {
        "sums": found,
        "speeds": served,
        "tables": {
            name: columns(f"#{each['first']}", *(f"#{title}" for _, title in each["columns"]))
            for name, each in (found | served).items()
        },
    }


def _summed(each: Sums) -> dict[str, Any]:
    names = _names(each.rows)
    compared = [name for name in names if name != "matmul" and name != "roofline"]
    ratios = {
        m: {name: row["matmul"][0] / row[name][0] for name in compared if name in row}
        for m, row in each.rows.items()
        if "matmul" in row
    }
    series = [
        (
            _TITLES.get(name, name),
            _KINDS.get(name, "s7"),
            _points(name, {m: r[name] for m, r in ratios.items() if name in r}),
        )
        for name in compared
    ]
    said = f"{each.model} on {each.device}: speed over torch's fp16 matmul by number of tokens"
    return {
        "title": f"{each.model} on {each.device}",
        "file": each.file,
        "first": "tokens",
        "columns": [(name, _TITLES.get(name, name)) for name in names],
        "rows": each.rows,
        "chart": svg.lines(series, said, level=1.0, unit="times the speed of fp16 matmul, over tokens"),
    }


def _served(each: Speeds) -> dict[str, Any]:
    names = _names(each.rows)
    series = [
        (
            _TITLES.get(name, name.capitalize()),
            _KINDS.get(name, "s4"),
            [_speed(name, cell, row[name]) for cell, row in each.rows.items() if name in row],
        )
        for name in names
    ]
    unit = (
        "tokens/s, over the size of the batch"
        if each.what == "decode"
        else "tokens/s, over the tokens of a prompt"
    )
    return {
        "title": f"{each.what.capitalize()}: {each.model} on {each.device}, vLLM {each.vllm}",
        "first": "batch" if each.what == "decode" else "tokens",
        "columns": [(name, _TITLES.get(name, name.capitalize())) for name in names],
        "rows": each.rows,
        "chart": svg.lines(series, f"{each.what}, {unit}", unit=unit),
    }


def _names(rows: Mapping[int, Mapping[str, Spread]]) -> Sequence[str]:
    known = {name for row in rows.values() for name in row}
    return [*(name for name in _TITLES if name in known), *sorted(known - _TITLES.keys())]


def _points(name: str, ratios: Mapping[int, float]) -> list[svg.Point]:
    title = _TITLES.get(name, name)
    return [svg.Point(m, r, r, r, "", f"{title}, {m} tokens: {r:.2f}×") for m, r in ratios.items()]


def _speed(name: str, cell: int, spread: Spread) -> svg.Point:
    median, low, high = spread
    title = f"{_TITLES.get(name, name.capitalize())}, {cell}: {median:.0f} tokens/s, {low:.0f} to {high:.0f}"
    return svg.Point(cell, median, low, high, "", title)
