"""The tables of `serving.py` from what its processes measured.

python benchmarks/serving_report.py FOLDER/measurements.jsonl [more files] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

_OURS = ("tuned", "untuned")
_START = "start of "
_COMPARISONS = (("/", operator.truediv), ("-", operator.sub))
_Values = dict[str, dict[tuple[str, int], float]]  # by variant, then by run and turn


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of some files; a last line that was cut off is left out."""
    rows = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        rows += [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each table, cell and variant [median, lowest, highest] of the processes, and ours against others.

    Ours are compared within a turn, so that what moves all processes of a turn cancels: as ratios, but starts
    by what they take longer.
    """
    tables: dict[str, dict[Any, _Values]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for row in rows:
        for table, value in _numbers(row):
            tables[table][row["cell"]][row["variant"]][row["run"], row["turn"]] = value
    return [
        {
            "table": table,
            "cell": cell,
            "values": {variant: _spread(list(each.values())) for variant, each in values.items()},
            "compared": dict(_compared(values, *_COMPARISONS[table.startswith(_START)])),
        }
        for table, cells in tables.items()
        for cell, values in sorted(cells.items(), key=lambda item: (str(type(item[0])), item[0]))
    ]


def _numbers(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What a row says about one process, each with the name of its table."""
    if row["kind"] == "decode":
        yield "decode, tokens/s by batch", row["cell"] / statistics.median(row["step_ms"]) * 1e3
    elif row["kind"] == "prefill":
        yield "prefill, tokens/s by tokens", row["cell"] / statistics.median(row["ms"]) * 1e3
    elif row["kind"] == "mixed":
        yield "mixed load, tokens/s by requests/s", row["tokens_s"]
        for what, name in (("first_ms", "time to first token"), ("each_ms", "time per output token")):
            for percent in (50, 99):
                yield f"mixed load, {name}, p{percent}, ms by requests/s", percentile(row[what], percent)
    elif row["kind"] == "start":
        yield f"{_START}the engine, s", row["start_s"]
        yield f"{_START}the process until its engine is ready, s", row["process_s"]


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that so many percent of all do not exceed."""
    return sorted(samples)[max(math.ceil(len(samples) * percent / 100), 1) - 1]


def _compared(
    values: _Values, sign: str, compare: Callable[[float, float], float]
) -> Iterator[tuple[str, list[float]]]:
    pairs = [*product(_OURS, [name for name in values if name not in _OURS]), _OURS]
    for ours, other in pairs:
        turns = [turn for turn in values.get(ours, {}) if turn in values.get(other, {})]
        if turns:
            pair = f"{ours} {sign} {other}"
            yield pair, _spread([compare(values[ours][turn], values[other][turn]) for turn in turns])


def _spread(samples: Sequence[float]) -> list[float]:
    return [statistics.median(samples), min(samples), max(samples)]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Every table, and a line about each process's kernels ahead of them."""
    parts = sorted(
        {
            f"{row['variant']}: {', '.join(f'{n} {name}' for name, n in row['kernels'].items()) or 'dense'}; "
            f"{row['folder']}, {row['device']}, vLLM {row['vllm']}, torch {row['torch']}"
            for row in rows
            if row["kind"] == "start"
        }
    )
    lines = [f"- {part}" for part in parts]
    entries = summary(rows)
    for table in dict.fromkeys(entry["table"] for entry in entries):
        cells = [entry for entry in entries if entry["table"] == table]
        for part, digits in (("values", None), ("compared", 2)):
            names = list(dict.fromkeys(name for entry in cells for name in entry[part]))
            if names:
                lines += ["", f"| {table} | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
                lines += [_line(entry["cell"], entry[part], names, digits) for entry in cells]
    return "\n".join(lines) + "\n"


def _line(cell: Any, values: dict[str, list[float]], names: Sequence[str], digits: int | None) -> str:
    shown = [_cell(values[name], digits) if name in values else "-" for name in names]
    return f"| {cell} | {' | '.join(shown)} |"


def _cell(spread: list[float], digits: int | None) -> str:
    if digits is None:
        digits = max(0, 2 - math.floor(math.log10(spread[0])))
    median, low, high = (f"{value:.{digits}f}" for value in spread)
    return median if low == high else f"{median} ({low} to {high})"


def main() -> None:
    """Print the tables of some files together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON document instead")
    options = parser.parse_args()
    rows = read(options.files)
    print(json.dumps(summary(rows)) if options.json else markdown(rows))


if __name__ == "__main__":
    main()
