"""Small units for the compiler."""

from __future__ import annotations

import hashlib
from pathlib import Path

from autotune.jit.unit import Unit

ADD = """
extern "C" __global__ void add(float* out, const float* x) {
  out[threadIdx.x] = x[threadIdx.x] + AMOUNT;
}
"""


def unit_in(folder: Path, text: str = ADD, arch: str = "sm_80", **defines: int) -> Unit:
    """A unit whose source is a file in the folder."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = folder / f"unit_{digest[:8]}.cu"
    path.write_text(text)
    return Unit(str(path), tuple(defines.items()), arch)
