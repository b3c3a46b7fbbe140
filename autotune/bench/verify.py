"""Checks a plan against the fp32 reference before it may be timed.

Tolerance of one output, from the operation: weights and the output are each rounded once to the layer's
dtype (unit roundoff u: 2^-11 fp16, 2^-8 bf16, 2^-24 fp32), and k products are summed in fp32. Rounding errors
of the weights are independent with standard deviation at most u |w| / sqrt(3), so those of a sum stay, with
probability above 1 - 1e-20, under 6 u sqrt(sum x^2 w^2), ten standard deviations (the central limit of
Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019, for the same argument).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from autotune.bench.operands import Operands
from autotune.kernels.family import Plan
from autotune.kernels.workspace import workspace
from autotune.packing import dequantize

_ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}
_GUARD = 64


class Verifier:
    """Fresh tokens with their reference, kept for all candidates of a problem."""

    def __init__(self, operands: Operands, m: int, seed: int, magnitude: float = 1.0) -> None:
        self._operands = operands
        self._x = operands.tokens(m, seed, magnitude)
        self._expected, self._tolerance = _reference(operands, self._x)

    def error(self, plan: Plan) -> str | None:
        """What is wrong with the plan's output; None when it is right, complete and repeats bit for bit."""
        first = self._run(plan)
        if isinstance(first, str):
            return first
        off = (first.float() - self._expected).abs() - self._tolerance
        if not bool((off <= 0).all()):
            row, column = divmod(int(off.nan_to_num(nan=torch.inf).argmax()), self._operands.layer.n)
            got, want = float(first[row, column]), float(self._expected[row, column])
            bound = float(self._tolerance[row, column])
            return f"out[{row}, {column}] is {got:g}, expected {want:g} within {bound:.2g} (m={len(self._x)})"
        second = self._run(plan)
        if isinstance(second, str) or not torch.equal(first, second):
            return f"two runs on the same data differ (m={len(self._x)})"
        return None

    def _run(self, plan: Plan) -> torch.Tensor | str:
        """The plan's output on a poisoned buffer between guards, or how it left the buffer broken."""
        m, n = len(self._x), self._operands.layer.n
        buffer = torch.full((m * n + 2 * _GUARD,), torch.nan, dtype=self._x.dtype, device=self._x.device)
        out = buffer[_GUARD:-_GUARD].view(m, n)
        scratch = workspace(self._x.device, plan.workspace_bytes(m))
        plan.run(self._x, self._operands.copies[0], None, out, scratch)
        if not bool(buffer[:_GUARD].isnan().all() & buffer[-_GUARD:].isnan().all()):
            return f"it writes outside its output (m={m})"
        return out


def _reference(operands: Operands, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected output and tolerance, both fp32 [m, n]."""
    layer = operands.layer
    weight, tokens = dequantize(operands.weight), x.float()
    exact = _full_precision(lambda: tokens @ weight.T)
    spread = _full_precision(lambda: tokens.square() @ weight.square().T).sqrt()
    roundoff = _ROUNDOFF[layer.dtype]
    summation = layer.k * _ROUNDOFF["fp32"]
    return exact, roundoff * exact.abs() + (6 * roundoff + summation) * spread + torch.finfo(x.dtype).tiny


def _full_precision(product: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The product without TF32."""
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return product()
    finally:
        torch.set_float32_matmul_precision(previous)
