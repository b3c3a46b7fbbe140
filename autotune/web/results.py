"""What the authors measured beside other packages, as benchmarks/results has it."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from autotune.checkpoints.shapes import PRESETS
from autotune.values.layer import Problem
from autotune.values.paths import shipped

FUSED = ("qkv", "o", "gate_up", "down")
"""A block's linears, as they are fused."""
_MODELS = ("llama7b", "llama3-8b")
_NO_OTHERS = {"stored", "default", "matmul", "roofline"}

Spread = tuple[float, float, float]
"""Median, and the ends of its interval or the lowest and highest."""


class Key(NamedTuple):
    """What a line of a file is about."""

    device: str
    dtype: str
    n: int
    k: int
    m: int


@dataclass(frozen=True, slots=True)
class Sums:
    """By number of tokens: what the four fused linears of a model take together, in µs, by column."""

    file: str
    device: str
    model: str
    rows: Mapping[int, Mapping[str, Spread]]

    @property
    def others(self) -> set[str]:
        """The columns that are kernels of other packages."""
        return {name for row in self.rows.values() for name in row} - _NO_OTHERS


@dataclass(frozen=True, slots=True)
class Speeds:
    """By batch or number of tokens: tokens per second of a model behind vLLM, by variant."""

    device: str
    model: str
    what: str
    vllm: str
    rows: Mapping[int, Mapping[str, Spread]]


def dense_us(device: str, problem: Problem) -> float | None:
    """What torch's fp16 matmul took for the problem on the device, None where that is not in the files."""
    layer = problem.layer
    key = Key(device, layer.dtype, layer.n, layer.k, problem.m)
    found = (file[key]["matmul"][0] for file in reversed(_files().values()) if "matmul" in file.get(key, {}))
    return next(found, None)


def sums() -> list[Sums]:
    """Sums over each model of which a file has all four linears; comparisons with others come first."""
    found = []
    for name, file in _files().items():
        for device in sorted({key.device for key in file}):
            for model in _MODELS:
                rows = _summed(file, device, model)
                if rows:
                    found.append(Sums(name, device, model, rows))
    return sorted(found, key=lambda each: (not each.others, -len(each.rows)))


def _summed(
    file: Mapping[Key, Mapping[str, Spread]], device: str, model: str
) -> dict[int, dict[str, Spread]]:
    projections = PRESETS[model].projections(1)
    rows = {}
    for m in sorted({key.m for key in file}):
        keys = [Key(device, "fp16", *projections[name], m) for name in FUSED]
        each = [file.get(key, {}) for key in keys]
        common = [name for name in each[0] if all(name in other for other in each)]
        if common:
            rows[m] = {name: _added([other[name] for other in each]) for name in common}
    return rows


def speeds() -> list[Speeds]:
    """Decode and prefill of each model that was served."""
    samples: dict[tuple[str, str], dict[int, dict[str, list[float]]]] = {}
    about: dict[str, Mapping[str, Any]] = {}
    for name, row in _lines("*-serving.jsonl"):
        if row["kind"] == "start":
            about[name] = row
        elif row["kind"] in ("decode", "prefill"):
            ms = statistics.median(row["step_ms" if row["kind"] == "decode" else "ms"])
            cells = samples.setdefault((name, row["kind"]), {})
            cells.setdefault(row["cell"], {}).setdefault(row["variant"], []).append(1e3 * row["cell"] / ms)
    return [
        Speeds(
            about[name]["device"],
            about[name]["folder"],
            kind,
            about[name]["vllm"],
            {
                cell: {v: (statistics.median(each), min(each), max(each)) for v, each in variants.items()}
                for cell, variants in sorted(cells.items())
            },
        )
        for (name, kind), cells in samples.items()
        if name in about
    ]


def _added(spreads: list[Spread]) -> Spread:
    median, low, high = (sum(each) for each in zip(*spreads, strict=True))
    return median, low, high


@functools.cache
def _files() -> dict[str, dict[Key, dict[str, Spread]]]:
    """Every column of every problem of short runs, by file; files of comparisons with others come last."""
    files: dict[str, dict[Key, dict[str, Spread]]] = {}
    for pattern in ("*-tokens.jsonl", "*-peers.jsonl"):
        for name, row in _lines(pattern):
            if row.get("mode", "short") == "short":
                key = Key(row["device"], row["dtype"], row["n"], row["k"], row["m"])
                files.setdefault(name, {})[key] = _spreads(row)
    return files


def _spreads(row: Mapping[str, Any]) -> dict[str, Spread]:
    times = ((name.removesuffix("_us"), value) for name, value in row.items() if name.endswith("_us"))
    found = {name: (value[0], value[1], value[2]) for name, value in times if isinstance(value, list)}
    return found | {"roofline": (row["floor_us"],) * 3}


def _lines(pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each file and each of its lines."""
    for path in sorted(shipped("benchmarks/results").glob(pattern)):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield path.name, json.loads(line)
