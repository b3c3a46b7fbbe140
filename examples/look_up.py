"""Ask what a layer runs with, and why, before and after a sweep has tuned it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import autotune

LAYER = autotune.Layer(n=256, k=256, group_size=64)


def show() -> str:
    """Print the answer for one token, and where it comes from."""
    answer = autotune.lookup(LAYER, m=1, device="cpu")
    time = "not measured" if answer.median_us is None else f"{answer.median_us:.1f} µs"
    print(f"{answer.source}: {answer.config}, {time}; {answer.reason}")
    return answer.source


def command(*arguments: str) -> None:
    """Run `autotune` with the arguments for the layer."""
    shapes = f"n={LAYER.n},k={LAYER.k},group_size={LAYER.group_size}"
    where = ("--m", "1", "--device", "cpu")
    subprocess.run(["autotune", *arguments, "--shapes", shapes, *where], check=True)


with tempfile.TemporaryDirectory() as folder:
    os.environ["AUTOTUNE_DB"] = str(Path(folder) / "autotune.db")
    assert show() == "default"
    command("sweep", "--budget", "10s")
    assert show() == "exact"
    command("lookup", "--explain")
