"""Checks a plan against the fp32 reference before it may be timed.

Tolerance of out[i, j], from the operation. Tokens are normal with standard deviation s (a power of two of the
row i), so an error sum_k x_ik w_jk d_k, whose relative errors d of the weights do not depend on x, is normal
too, for any weight and however equal or correlated its roundings are:

- Weights may be rounded to the layer's dtype, |d| <= u (unit roundoff: 2^-11 fp16, 2^-8 bf16, 2^-24 fp32):
  the deviation is at most u s |w_j|_2, and 7 of those are exceeded with probability 2.6e-12 if every weight
  errs by the whole of u, 1e-33 if they err by u / sqrt(3), as roundings do. (Higham and Mary, "Sharper
  probabilistic backward error analysis for basic linear algebra kernels with random data", 2020: errors of
  random data of mean zero grow with the 2-norm.)
- fp32 sums: tensor cores truncate, so each of at most k / 16 additions errs by at most 2^-23 of a partial
  sum, all in one direction (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores",
  2021); partial sums stay under 8 deviations, which makes 2^-24 k s |t_j|_2. Terms t: a kernel may centre
  nibbles at 8 and subtract zeros from the sum, two terms of up to 8 scales where w itself may vanish.
- The output is rounded, and once more when a library adds the bias to it: 2 u |out|.
- Below the smallest normal number of the dtype the spacing stays: there u applies to that number instead.

fp16 has few exponents, so its tokens are also so large that outputs come near overflow, and so small that
outputs come near the smallest normal number. bf16 and fp32 have the exponents of the fp32 sums, which a right
kernel may form before it scales them; their extremes keep 2^26 away from the ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch

from autotune.bench.operands import Operands
from autotune.families.protocol import Plan
from autotune.families.workspace import COUNTER_BYTES
from autotune.layouts import QuantizedWeight, dequantize

_ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}
_DEVIATIONS = 7
_HEADROOM = 8
"""Deviations that outputs near overflow may reach."""
_FAR = 100
"""Exponent of the extreme magnitudes of the dtypes that have the exponents of fp32."""
_GUARD_BYTES = 1 << 14
_POISON = 0xFF
"""A byte that makes NaN of every dtype."""
_FEW = 16
"""Most tokens for the hard weight: what it tests, dequantisation, is done per weight and not per token."""
_HARD_SEED = 1
_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Weights that the reference dequantises at once."""


@dataclass(frozen=True, slots=True)
class _Case:
    """Inputs with their expected output and its tolerance, both fp32 [m, n]."""

    x: torch.Tensor
    weight: Any
    bias: torch.Tensor | None
    expected: torch.Tensor
    tolerance: torch.Tensor

    def first(self, m: int) -> _Case:
        """The case of the first m tokens."""
        return _Case(self.x[:m], self.weight, self.bias, self.expected[:m], self.tolerance[:m])


@dataclass(frozen=True, slots=True)
class _Tokens:
    """x[m, k] and the standard deviation of each of its rows, [m, 1]."""

    x: torch.Tensor
    deviation: torch.Tensor


class _Guarded:
    """Bytes between two guards, reused from plan to plan."""

    def __init__(self, device: torch.device) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        self._bytes = 0

    def poisoned(self, bytes: int) -> torch.Tensor:
        """uint8[bytes] of NaN between new guards."""
        whole = bytes + 2 * _GUARD_BYTES
        if self._buffer.numel() < whole:
            self._buffer = self._buffer.new_empty(max(whole, 2 * self._buffer.numel()))
        self._bytes = bytes
        self._buffer[:whole].fill_(_POISON)
        return self._buffer[_GUARD_BYTES : _GUARD_BYTES + bytes]

    def guards(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The bytes before and behind."""
        end = _GUARD_BYTES + self._bytes
        return self._buffer[:_GUARD_BYTES], self._buffer[end : end + _GUARD_BYTES]


class Verifier:
    """Fresh tokens with their reference, kept for all candidates of a problem.

    A plan runs on m tokens, then on few tokens of a hard weight with a bias, then on the m tokens again, in
    one workspace: poisoned and with no byte too many at first, left dirty by fewer tokens at the end. Rows of
    three magnitudes take turns; with m < 3 they take several runs.

    `deviation` is the largest error of the last checked plan as a fraction of the tolerance.
    """

    def __init__(self, operands: Operands, m: int, seed: int) -> None:
        self._m, self._n = m, operands.layer.n
        self.deviation = math.inf
        plain = _cases(operands, m, seed)
        hard = operands.once("hard case", lambda: _hard_case(operands)).first(_few(m))
        self._cases = (*plain, hard, plain[0])
        device = plain[0].x.device
        self._outputs = tuple(_Guarded(device) for _ in self._cases)
        self._workspace = _Guarded(device)

    def first(self, m: int) -> Verifier:
        """The same for the first m of the tokens, at least 3, in the same buffers."""
        twin = copy(self)
        plain, hard, _ = self._cases
        first = plain.first(m)
        twin._m, twin._cases = m, (first, hard.first(_few(m)), first)
        return twin

    def with_layout(self, operands: Operands) -> Verifier:
        """The same tokens and reference for plans that read another layout of the operands' weight."""
        twin = copy(self)
        hard = operands.once("hard weight", lambda: operands.packed(operands.hard_weight(_HARD_SEED)))
        twin._cases = tuple(
            replace(case, weight=operands.copies[0] if case.bias is None else hard) for case in self._cases
        )
        return twin

    def error(self, plan: Plan) -> str | None:
        """What is wrong with the plan's output; None when it is right, complete and repeats bit for bit.

        The host waits for the device once.
        """
        self.deviation = math.inf
        sizes = [plan.workspace_bytes(len(case.x)) for case in self._cases]
        scratch = self._workspace.poisoned(max(sizes))
        counters = scratch[: min(COUNTER_BYTES, len(scratch))].zero_()
        outputs, errors, unclean = [], [], []
        for case, guarded, size in zip(self._cases, self._outputs, sizes, strict=True):
            out = guarded.poisoned(case.expected.numel() * case.x.element_size())
            out = out.view(case.x.dtype).view(case.expected.shape)
            plan.run(case.x, case.weight, case.bias, out, scratch[:size] if size else None)
            outputs.append(out)
            if case is not self._cases[0] or len(outputs) == 1:
                errors.append(_largest_error(out, case))
            if size:
                unclean.append(counters.any())
        flags = (
            _touched(self._outputs),
            _touched((self._workspace,)),
            *unclean,
            (_bits(outputs[0]) != _bits(outputs[-1])).any(),
        )
        found = torch.cat((torch.stack(flags).double(), torch.stack(errors).double())).tolist()
        wrote, wrote_workspace, *left, differs = found[: len(flags)]
        largest = found[len(flags) :]
        self.deviation = max(math.inf if math.isnan(error) else error for error in largest)
        if wrote:
            return self._about("it writes outside its output")
        if wrote_workspace:
            return self._about("it writes outside its workspace")
        for out, case, error in zip(outputs, self._cases, largest, strict=False):
            if not error <= 1:
                return _describe(out, case)
        if any(left):
            return self._about("it leaves counters in its workspace that are not zero")
        return self._about("two runs on the same data differ") if differs else None

    def _about(self, what: str) -> str:
        return f"{what} (m={self._m})"


def _few(m: int) -> int:
    """Tokens for the hard weight: fewer than m, where there are fewer."""
    return max(1, min(_FEW, m // 2))


def _touched(buffers: tuple[_Guarded, ...]) -> torch.Tensor:
    """Whether a byte of their guards was written."""
    return (torch.cat([guard for buffer in buffers for guard in buffer.guards()]) != _POISON).any()


def _bits(out: torch.Tensor) -> torch.Tensor:
    return out.view(torch.int16 if out.element_size() == 2 else torch.int32)


def _largest_error(out: torch.Tensor, case: _Case) -> torch.Tensor:
    """The largest error as a fraction of its tolerance; NaN when the output has one."""
    low, high = torch.aminmax((out - case.expected).div_(case.tolerance))
    return torch.maximum(-low, high)


def _describe(out: torch.Tensor, case: _Case) -> str:
    """The worst element."""
    off = ((out - case.expected).abs() / case.tolerance).nan_to_num(nan=torch.inf)
    row, column = divmod(int(off.argmax()), out.shape[1])
    got, want, bound = (float(each[row, column]) for each in (out, case.expected, case.tolerance))
    return f"out[{row}, {column}] is {got:g}, expected {want:g} within {bound:.2g} (m={len(out)})"


def _cases(operands: Operands, m: int, seed: int) -> list[_Case]:
    """The operands' weight with every magnitude: one case from m = 3 on, several below."""
    norms = operands.once("norms", lambda: _norms(operands.weight))
    cases = []
    for start in range(0, 3, m):
        x = _scaled(operands.tokens(m, seed=3 * seed + start), norms, start)
        cases.append(_case(x, operands.weight, norms, operands.copies[0]))
    return cases


def _hard_case(operands: Operands) -> _Case:
    """The hard weight with a bias and _FEW tokens."""
    weight = operands.hard_weight(_HARD_SEED)
    norms = _norms(weight)
    x = _scaled(operands.tokens(_FEW, seed=1), norms, start=0)
    bias = operands.tokens(1, seed=2)
    bias = bias.repeat(1, -(-operands.layer.n // operands.layer.k))[0, : operands.layer.n].contiguous()
    return _case(x, weight, norms, operands.packed(weight), bias)


def _scaled(unit: torch.Tensor, norms: torch.Tensor, start: int) -> _Tokens:
    """Row i of unit tokens times magnitude `start` + i of the three, in turn: one, large, tiny."""
    largest = float(norms.max())
    if unit.dtype == torch.float16:
        large = torch.finfo(unit.dtype).max / _HEADROOM / max(largest, 1.0)
        tiny = torch.finfo(unit.dtype).tiny / max(largest, 1.0)
    else:
        large, tiny = 2.0**_FAR, 2.0**-_FAR
    magnitudes = [1.0, 2.0 ** math.floor(math.log2(large)), 2.0 ** math.ceil(math.log2(tiny))]
    turns = [magnitudes[(start + row) % 3] for row in range(len(unit))]
    deviation = torch.tensor(turns, device=unit.device).unsqueeze(1)
    return _Tokens((unit.float() * deviation).to(unit.dtype), deviation)


def _case(
    tokens: _Tokens,
    weight: QuantizedWeight,
    norms: torch.Tensor,
    packed: Any,
    bias: torch.Tensor | None = None,
) -> _Case:
    layer, x = weight.layer, tokens.x.float()
    expected = torch.empty((len(x), layer.n), device=x.device)
    for rows, dense in _dense(weight):
        expected[:, rows] = _full_precision(x, dense)
    if bias is not None:
        expected += bias.float()
    roundoff, tiny = _ROUNDOFF[layer.dtype], torch.finfo(tokens.x.dtype).tiny
    terms = (2 * 8**2 * layer.group_size * weight.scales.float().square().sum(dim=0)).sqrt()
    rounded = torch.hypot(norms, torch.full_like(norms, tiny * layer.k**0.5))
    spread = _DEVIATIONS * roundoff * rounded + layer.k * _ROUNDOFF["fp32"] * terms
    tolerance = expected.abs().clamp_(min=tiny).mul_(2 * roundoff).addcmul_(tokens.deviation, spread)
    return _Case(tokens.x, packed, bias, expected, tolerance)


def _norms(weight: QuantizedWeight) -> torch.Tensor:
    """2-norm of every row, fp32 [n]."""
    return torch.cat([torch.linalg.vector_norm(dense, dim=1) for _, dense in _dense(weight)])


def _dense(weight: QuantizedWeight) -> Iterator[tuple[slice, torch.Tensor]]:
    """The dequantised weight, fp32, some rows at a time: 22016 x 4096 of them would take 360 MB."""
    layer = weight.layer
    count = max(8, _CHUNK[weight.q.device.type] // layer.k // 8 * 8)
    for begin in range(0, layer.n, count):
        rows = slice(begin, min(begin + count, layer.n))
        zeros = None if weight.zeros is None else weight.zeros[:, rows]
        part = replace(layer, n=rows.stop - begin)
        yield rows, dequantize(QuantizedWeight(part, weight.q[rows], weight.scales[:, rows], zeros))


def _full_precision(x: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """x @ dense.T without TF32."""
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return x @ dense.T
    finally:
        torch.set_float32_matmul_precision(previous)
