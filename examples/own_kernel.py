"""A kernel of your own in plain torch: tuned by a sweep, looked up, and run in a module."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import torch

import autotune
from autotune.layouts import QuantizedWeight, dequantize, random_weight


@autotune.kernel(space={"parts": (1, 2, 4)}, device="cpu")
def in_parts(x: torch.Tensor, weight: QuantizedWeight, out: torch.Tensor, *, parts: int) -> None:
    """Write out[m, n] = x[m, k] @ dequant(weight).T, some rows of the weight at a time."""
    dense = dequantize(weight)
    for columns, rows in zip(out.chunk(parts, dim=1), dense.chunk(parts), strict=True):
        columns.copy_(x.float() @ rows.T)


def main() -> None:
    layer = autotune.Layer(n=128, k=128, group_size=32)
    with tempfile.TemporaryDirectory() as folder:
        # A sweep writes here, and the look-ups below read it.
        os.environ["AUTOTUNE_DB"] = str(Path(folder) / "autotune.db")
        shapes = f"n={layer.n},k={layer.k},group_size={layer.group_size}"
        where = ("--shapes", shapes, "--m", "1", "--device", "cpu", "--budget", "20s")
        subprocess.run(["autotune", "sweep", "--kernel", f"{__file__}:in_parts", *where], check=True)
        answer = in_parts.best(layer, m=1)
        print(f"{answer.config} ({answer.source}): {answer.reason}")

        weight = random_weight(layer, torch.Generator().manual_seed(0))
        linear = in_parts.linear(weight)
        x = torch.randn(3, layer.k).half()
        torch.testing.assert_close(linear(x).float(), x.float() @ dequantize(weight).T, rtol=2e-3, atol=2e-3)
        print(linear)


if __name__ == "__main__":
    main()
