"""Draws what peers.py wrote: how many times as fast as the fp16 matmul each kernel is, against m.

    python benchmarks/chart.py benchmarks/results/h200-peers.jsonl benchmarks/results/h200-peers.svg

A panel for each model whose four fused linears are there, added up. The picture has no background of its own,
and reads on light and dark.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any

from peers_report import MODELS, TITLES, Times, of_mode, read, speeds, sums

COLOURS = {
    "stored": "#2f81f7",
    "humming": "#e5534b",
    "machete": "#3fa34d",
    "marlin": "#c08a1e",
    "gemlite": "#9a6fe0",
    "torch_int4": "#8d7a66",
}
_SPEEDS = (0.5, 0.75, 1, 1.5, 2, 3, 4)
_PANEL, _HEIGHT, _LEFT, _TOP, _GAP = 300, 240, 48, 68, 20
_STYLE = """
text{font:12px system-ui,sans-serif;fill:#57606a}
.grid{stroke:#8c959f;stroke-opacity:.3}
.dense{stroke:#8c959f;stroke-width:1.5}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
@media(prefers-color-scheme:dark){text{fill:#adb8c4}}
"""


def draw(rows: Sequence[dict[str, Any]]) -> str:
    """The picture as SVG."""
    short = of_mode(rows, "short")
    found = {model: summed for model in MODELS if (summed := sums(short, model))}
    if not found:
        raise SystemExit("no model's four fused linears are all there; run peers.py to the end")
    devices = ", ".join(sorted({row["device"] for row in short}))
    panels = max(len(found), 2)
    width = _LEFT + panels * (_PANEL + _GAP)
    height = _TOP + _HEIGHT + 44
    title = f"Speed of int4 linears over torch's fp16 matmul, {devices}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img">',
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
        f'<text x="{_LEFT}" y="16" font-weight="600">{title}</text>',
        *_legend(found),
    ]
    share = panels / len(found)
    for place, (model, summed) in enumerate(found.items()):
        left = _LEFT + place * (_PANEL + _GAP)
        lines += _panel(model, summed, left, round(_PANEL * share + _GAP * (share - 1)))
    return "\n".join((*lines, "</svg>")) + "\n"


def _legend(found: Mapping[str, Mapping[int, Times]]) -> Iterator[str]:
    there = {name for summed in found.values() for times in summed.values() for name in times}
    left = _LEFT
    for name in filter(there.__contains__, COLOURS):
        yield f'<path class="line" stroke="{COLOURS[name]}" d="M{left} 34h18"/>'
        yield f'<text x="{left + 24}" y="38">{TITLES[name]}</text>'
        left += 44 + 7 * len(TITLES[name])


def _panel(model: str, summed: Mapping[int, Times], left: int, width: int) -> Iterator[str]:
    """The axes, and a line for each kernel; what is slower than half of fp16 is cut off."""
    octaves = max(log2(max(summed)), 1)

    def x(m: int) -> float:
        return round(left + width * log2(m) / octaves, 1)

    def y(speed: float) -> float:
        least, most = log2(_SPEEDS[0]), log2(_SPEEDS[-1])
        return round(_TOP + _HEIGHT * (most - log2(speed)) / (most - least), 1)

    yield f'<text x="{left}" y="{_TOP - 8}" font-weight="600">{model}</text>'
    for speed in _SPEEDS:
        kind = "dense" if speed == 1 else "grid"
        yield f'<path class="{kind}" d="M{left} {y(speed)}h{width}"/>'
        if left == _LEFT:
            yield f'<text x="{left - 6}" y="{y(speed) + 4}" text-anchor="end">{speed:g}×</text>'
    bottom = _TOP + _HEIGHT
    for m in (4**power for power in range(int(octaves / 2) + 1)):
        yield f'<path class="grid" d="M{x(m)} {_TOP}V{bottom}"/>'
        yield f'<text x="{x(m)}" y="{bottom + 16}" text-anchor="middle">{m}</text>'
    yield f'<text x="{left + width / 2:g}" y="{bottom + 34}" text-anchor="middle">tokens</text>'
    yield f'<clipPath id="{model}"><path d="M{left} {_TOP}h{width}v{_HEIGHT}h-{width}z"/></clipPath>'
    for name in reversed(COLOURS):
        points = {m: speeds(times)[name] for m, times in summed.items() if name in times}
        if points:
            path = " ".join(f"{x(m)},{y(speed)}" for m, speed in points.items())
            yield (
                f'<polyline class="line" id="{model}-{name}" stroke="{COLOURS[name]}"'
                f' clip-path="url(#{model})" points="{path}"/>'
            )


def main() -> None:
    """Read the lines and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("chart", type=Path)
    options = parser.parse_args()
    options.chart.write_text(draw(read([options.results])), encoding="utf-8")


if __name__ == "__main__":
    main()
