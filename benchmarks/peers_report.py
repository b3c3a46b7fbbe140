"""Tables of what `peers.py` measured: layers, sums over a model's fused linears, and ratios.

python benchmarks/peers_report.py results.jsonl [more files]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.checkpoints.shapes import PRESETS, Decoder

GROUP_SIZE = 128
FUSED = ("qkv", "o", "gate_up", "down")
MODELS: Mapping[str, Decoder] = {
    "llama7b": PRESETS["llama7b"],
    "llama3-8b": PRESETS["llama3-8b"],
    "gemma2-9b": Decoder(3584, 14336, 16, 8, 256),
}
"""The last is no preset: autotune has no records of its layers."""
TITLES = {
    "stored": "autotune",
    "default": "autotune, default config",
    "matmul": "fp16 matmul",
    "humming": "Humming",
    "machete": "Machete",
    "marlin": "Marlin",
    "gemlite": "GemLite",
    "torch_int4": "torch int4",
}
BANDS = ((1, 32), (33, 64), (65, 128), (129, 256), (257, 511), (512, 512), (513, 1023), (1024, 8192))
_BELOW = 0.98

Times = dict[str, tuple[float, float, float]]
"""Median and the ends of its interval, µs, by column."""


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of some files; a last one that was cut off is left out."""
    rows = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        rows += [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return rows


def sizes(model: str) -> dict[str, tuple[int, int]]:
    """n and k of each fused linear of a model's block."""
    projections = MODELS[model].projections(1)
    return {name: projections[name] for name in FUSED}


def times(row: Mapping[str, Any]) -> Times:
    """Every column of a line."""
    found = ((name.removesuffix("_us"), value) for name, value in row.items() if name.endswith("_us"))
    return {name: (value[0], value[1], value[2]) for name, value in found if isinstance(value, list)}


def of_mode(rows: Iterable[dict[str, Any]], mode: str) -> list[dict[str, Any]]:
    """The lines of a mode; those from before there were two are short."""
    return [row for row in rows if row.get("mode", "short") == mode]


def sums(rows: Iterable[dict[str, Any]], model: str) -> dict[int, Times]:
    """By number of tokens: the columns that each linear of the model has, added up."""
    known = {(row["n"], row["k"], row["m"]): times(row) for row in rows}
    found = {}
    for m in sorted({m for _, _, m in known}):
        each = [known.get((n, k, m), {}) for n, k in sizes(model).values()]
        common = [name for name in each[0] if all(name in other for other in each)]
        if common:
            found[m] = {
                name: tuple(map(sum, zip(*(other[name] for other in each), strict=True))) for name in common
            }
    return found


def speeds(summed: Times) -> dict[str, float]:
    """How many times as fast as the fp16 matmul each other column is."""
    dense = summed["matmul"][0]
    return {name: dense / summed[name][0] for name in summed if name != "matmul"}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Every table."""
    short, long = of_mode(rows, "short"), of_mode(rows, "long")
    lines = [f"{', '.join(sorted({row['device'] for row in rows}))}; medians in µs with their 95 % interval"]
    for model in MODELS:
        for name, chosen in (("short runs", short), ("long runs", long)):
            summed = sums(chosen, model)
            if summed:
                title = f"{model}, the four fused linears, {name}"
                lines += ["", title, "", *_sums(summed), "", *_bands(summed)]
    lines += ["", "Layers, short runs", "", *_layers(short)] if short else []
    lines += ["", "Layers, long runs", "", *_long(long)] if long else []
    slow = list(_slow(rows))
    lines += ["", f"Layers where ours is below {_BELOW} of the best of the others: {len(slow)}", *slow]
    return "\n".join(lines) + "\n"


def _sums(summed: Mapping[int, Times]) -> Iterator[str]:
    names = list(dict.fromkeys(name for each in summed.values() for name in each))
    others = [name for name in names if name not in ("stored", "default")]
    yield from _header("m", *(TITLES.get(name, name) for name in names), *(f"over {name}" for name in others))
    for m, each in summed.items():
        cells = [_cell(each[name]) if name in each else "-" for name in names]
        over = [f"{each[name][0] / each['stored'][0]:.2f}" if name in each else "-" for name in others]
        yield f"| {' | '.join((str(m), *cells, *over))} |"


def _bands(summed: Mapping[int, Times]) -> Iterator[str]:
    """How much faster ours is than each other, over ranges of m: the mean, and the worst."""
    names = dict.fromkeys(name for each in summed.values() for name in each)
    others = [name for name in names if name not in ("stored", "default")]
    yield from _header("m", *(f"over {name}, mean (worst, at m)" for name in others))
    for least, most in BANDS:
        inside = {m: each for m, each in summed.items() if least <= m <= most}
        if not inside:
            continue
        cells = []
        for name in others:
            over = {m: each[name][0] / each["stored"][0] for m, each in inside.items() if name in each}
            worst = min(over, key=over.__getitem__, default=None)
            cells.append(
                "-" if worst is None else f"{statistics.mean(over.values()):.2f} ({over[worst]:.2f}, {worst})"
            )
        span = str(least) if least == most else f"{least} to {most}"
        yield f"| {' | '.join((span, *cells))} |"


def _layers(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in times(row)))
    yield from _header("n×k", "m", *(TITLES.get(name, name) for name in names), "answer")
    for row in sorted(rows, key=lambda row: (row["n"], row["k"], row["m"])):
        each = times(row)
        cells = [_cell(each[name]) if name in each else "-" for name in names]
        answer = f"{row['source']} {row['config']}" if "config" in row else ""
        yield f"| {row['n']}×{row['k']} | {row['m']} | {' | '.join(cells)} | {answer} |"


def _long(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each column of each layer: what it takes, what it does, and what it uses."""
    yield from _header("n×k", "m", "", "µs", "TFLOP/s", "MHz", "W", "mJ a call")
    for row in sorted(rows, key=lambda row: (row["n"], row["k"], row["m"])):
        for name, each in times(row).items():
            said = row.get(f"{name}_run", {})
            does = 2 * row["n"] * row["k"] * row["m"] / each[0] / 1e6
            joules = said.get("joules")
            cells = (
                f"{does:.0f}",
                *(_whole(said.get(what)) for what in ("clock_mhz", "power_w")),
                "-" if joules is None else f"{1e3 * joules:.3g}",
            )
            title = TITLES.get(name, name)
            yield f"| {row['n']}×{row['k']} | {row['m']} | {title} | {_cell(each)} | {' | '.join(cells)} |"


def _slow(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        each = times(row)
        best = min((each[name][0] for name in each if name not in ("stored", "default")), default=None)
        if best is not None and "stored" in each and best / each["stored"][0] < _BELOW:
            which = f"{row['n']}×{row['k']}, m={row['m']}, {row.get('mode', 'short')}"
            yield f"- {which}: {best / each['stored'][0]:.3f} {row.get('source', '')} {row.get('config', '')}"


def _header(*names: str) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"


def _cell(spread: tuple[float, float, float]) -> str:
    median, low, high = spread
    digits = 2 if median < 100 else 1 if median < 1000 else 0
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def main() -> None:
    """Print the tables of some files together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    print(markdown(read(parser.parse_args().files)), end="")


if __name__ == "__main__":
    main()
