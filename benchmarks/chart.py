"""Draw what `autotune bench --json` or peers.py wrote: time against m, with the roofline.

autotune bench --shapes llama7b --json > results.jsonl
python benchmarks/chart.py results.jsonl chart.svg        (needs matplotlib)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams |= {"svg.hashsalt": "autotune", "svg.fonttype": "none"}
from matplotlib import pyplot as plt  # noqa: E402

SERIES = (
    ("matmul_us", "torch matmul, 16-bit", "tab:gray", "o"),
    ("torch_int4_us", "torch int4", "tab:brown", "^"),
    ("gemlite_us", "gemlite", "tab:green", "v"),
    ("humming_us", "Humming", "tab:red", "X"),
    ("default_us", "autotune, default config", "tab:orange", "s"),
    ("stored_us", "autotune, stored config", "tab:blue", "D"),
)


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """One panel per layer, in the order of their weights."""
    layers = sorted({(row["n"] * row["k"], row["n"], row["k"]) for row in rows})
    figure, panels = plt.subplots(
        1, len(layers), figsize=(3.4 * len(layers), 3.8), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (_, n, k) in zip(panels[0], layers, strict=True):
        chosen = sorted((row for row in rows if (row["n"], row["k"]) == (n, k)), key=lambda row: row["m"])
        m = [row["m"] for row in chosen]
        for name, label, colour, marker in SERIES:
            if not all(name in row for row in chosen):
                continue
            median, low, high = zip(*(row[name] for row in chosen), strict=True)
            panel.plot(m, median, label=label, color=colour, marker=marker, markersize=3.5, linewidth=1.3)
            panel.fill_between(m, low, high, color=colour, alpha=0.25, linewidth=0)
        panel.plot(m, [row["floor_us"] for row in chosen], "k--", linewidth=1, label="roofline")
        panel.set(xscale="log", yscale="log", title=f"{n} x {k}", xlabel="m, tokens")
        panel.set_xscale("log", base=2)
        panel.grid(alpha=0.3, which="major")
    panels[0][0].set_ylabel("time of one call, µs")
    panels[0][0].legend(fontsize="small", loc="upper left")
    figure.suptitle(f"int4 linear layers on {rows[0]['device']}, {rows[0]['dtype']}, median")
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("chart", type=Path)
    arguments = parser.parse_args()
    draw([json.loads(line) for line in arguments.results.read_text().splitlines()], arguments.chart)


if __name__ == "__main__":
    main()
