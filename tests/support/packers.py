"""Slow packers of every checkpoint format: each value is put where the format's closed form says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from autotune.layouts import QuantizedWeight

Tensors = dict[str, torch.Tensor]
Word = Callable[[list[int]], int]
AWQ_PLACE = (0, 4, 1, 5, 2, 6, 3, 7)
SINGLE = (0, 1, 8, 9, 16, 17, 24, 25)


class Words:
    """A matrix of words, all bits zero, into which values of 4 bits are put."""

    def __init__(self, rows: int, columns: int, bits: int = 32) -> None:
        self._array = np.zeros((rows, columns), dtype=np.uint32)
        self._bits = bits

    def put(self, row: int, column: int, nibble: int, value: int) -> None:
        self._array[row, column] |= np.uint32(value << (4 * nibble))

    @property
    def tensor(self) -> torch.Tensor:
        signed = {16: (np.uint16, np.int16), 32: (np.uint32, np.int32)}[self._bits]
        return torch.from_numpy(self._array.astype(signed[0]).view(signed[1]))


def zeros_of(weight: QuantizedWeight) -> list[list[int]]:
    """[group][n]; 8 everywhere for a symmetric weight."""
    layer = weight.layer
    return weight.zeros.tolist() if weight.zeros is not None else [[8] * layer.n] * layer.groups


def awq_gemm(weight: QuantizedWeight) -> Tensors:
    layer, q, zeros = weight.layer, weight.q.tolist(), zeros_of(weight)
    qweight, qzeros = Words(layer.k, layer.n // 8), Words(layer.groups, layer.n // 8)
    for n in range(layer.n):
        for k in range(layer.k):
            qweight.put(k, n // 8, AWQ_PLACE[n % 8], q[n][k])
        for group in range(layer.groups):
            qzeros.put(group, n // 8, AWQ_PLACE[n % 8], zeros[group][n])
    return {"qweight": qweight.tensor, "qzeros": qzeros.tensor, "scales": weight.scales}


def gemv_width(groups: int, group_size: int) -> int:
    """Words of zeros: a multiple of 1 from groups of 128 on, of 2 for 64, of 4 for 32."""
    multiple = 1 if group_size >= 128 else 128 // group_size
    width = 0
    while 8 * width < groups:
        width += multiple
    return width


def awq_gemv(weight: QuantizedWeight) -> Tensors:
    layer, q, zeros = weight.layer, weight.q.tolist(), zeros_of(weight)
    width = gemv_width(layer.groups, layer.group_size)
    qweight, qzeros = Words(layer.n, layer.k // 8), Words(layer.n, width)
    scales = torch.zeros((layer.n, 8 * width), dtype=weight.scales.dtype)
    for n in range(layer.n):
        for k in range(layer.k):
            qweight.put(n, k // 8, k % 8, q[n][k])
        for group in range(layer.groups):
            qzeros.put(n, group // 8, group % 8, zeros[group][n])
            scales[n, group] = weight.scales[group, n]
    return {"qweight": qweight.tensor, "qzeros": qzeros.tensor, "scales": scales}


def awq_gemv_fast(weight: QuantizedWeight, zeros_name: str = "scaled_zeros") -> Tensors:
    layer, q = weight.layer, weight.q.tolist()
    qweight = Words(layer.n // 4, layer.k, bits=16)
    for n in range(layer.n):
        for k in range(layer.k):
            r, kb, kk = n % 4, k // 64, k % 64
            h, e = kk // 32, kk % 32
            t, b = 2 * (e // 8) + e % 2, (e % 8) // 2
            x = 64 * r + 32 * h + 8 * b + 4 * (t % 2) + t // 2
            qweight.put(n // 4, 64 * kb + x // 4, x % 4, q[n][k])
    rows = 8 * gemv_width(layer.groups, layer.group_size)
    scales = torch.zeros((rows, layer.n), dtype=weight.scales.dtype)
    scaled = torch.zeros_like(scales)
    zeros = torch.tensor(zeros_of(weight))
    scales[: layer.groups] = weight.scales
    scaled[: layer.groups] = -(weight.scales.float() * zeros).to(scales.dtype)
    return {"qweight": qweight.tensor, "scales": scales, zeros_name: scaled}


def shuffled_groups(k: int, group_size: int, seed: int = 0) -> torch.Tensor:
    """A g_idx as desc_act makes it: each group has group_size columns, anywhere."""
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    g_idx = torch.empty(k, dtype=torch.int32)
    g_idx[order] = torch.arange(k, dtype=torch.int32) // group_size
    return g_idx


def stored_order(weight: QuantizedWeight, g_idx: torch.Tensor | None) -> list[list[int]]:
    """q [n][k] of the checkpoint: the weight's columns, sorted by group, back where g_idx has them."""
    rows, group_size = weight.q.tolist(), weight.layer.group_size
    if g_idx is None:
        return rows
    taken = [group * group_size for group in range(weight.layer.groups)]
    source = []
    for group in g_idx.tolist():
        source.append(taken[group])
        taken[group] += 1
    return [[row[column] for column in source] for row in rows]


def gptq(weight: QuantizedWeight, g_idx: torch.Tensor | None = None, minus_one: bool = True) -> Tensors:
    layer, q, zeros = weight.layer, stored_order(weight, g_idx), zeros_of(weight)
    qweight, qzeros = Words(layer.k // 8, layer.n), Words(layer.groups, layer.n // 8)
    for n in range(layer.n):
        for k in range(layer.k):
            qweight.put(k // 8, n, k % 8, q[n][k])
        for group in range(layer.groups):
            qzeros.put(group, n // 8, n % 8, (zeros[group][n] - minus_one) % 16)
    plain = torch.arange(layer.k, dtype=torch.int32) // layer.group_size
    return {
        "qweight": qweight.tensor,
        "qzeros": qzeros.tensor,
        "scales": weight.scales,
        "g_idx": plain if g_idx is None else g_idx,
    }


def summed(zeros: list[int]) -> int:
    """auto-round until 0.15 subtracts and adds up the shifted zeros, -1 among them."""
    total = 0
    for i, zero in enumerate(zeros):
        total += (zero - 1) * 16**i
    return total % 2**32


def as_they_are(zeros: list[int]) -> int:
    """GPTQ v2."""
    return sum(zero << 4 * i for i, zero in enumerate(zeros))


def less_ones(zeros: list[int]) -> int:
    """GPTQModel packs the zeros and subtracts from the word."""
    return (as_they_are(zeros) - 0x11111111) % 2**32


def gptq_with(weight: QuantizedWeight, word: Word, g_idx: torch.Tensor | None = None) -> Tensors:
    """GPTQ whose words of zeros are what `word` makes of eight zeros."""
    rows = [[word(row[start : start + 8]) for start in range(0, len(row), 8)] for row in zeros_of(weight)]
    return {**gptq(weight, g_idx), "qzeros": torch.from_numpy(np.array(rows, dtype=np.uint32).view(np.int32))}


def compressed_tensors(weight: QuantizedWeight, g_idx: torch.Tensor | None = None) -> Tensors:
    layer, q = weight.layer, stored_order(weight, g_idx)
    packed, zeros = Words(layer.n, layer.k // 8), Words(layer.n // 8, layer.groups)
    for n in range(layer.n):
        for k in range(layer.k):
            packed.put(n, k // 8, k % 8, q[n][k])
        for group in range(layer.groups):
            zeros.put(n // 8, group, n % 8, zeros_of(weight)[group][n])
    tensors = {
        "weight_packed": packed.tensor,
        "weight_scale": weight.scales.T.contiguous(),
        "weight_shape": torch.tensor([layer.n, layer.k]),
    }
    if weight.zeros is not None:
        tensors["weight_zero_point"] = zeros.tensor
    if g_idx is not None:
        tensors["weight_g_idx"] = g_idx
    return tensors


def marlin_row(row: torch.Tensor, grouped: bool) -> torch.Tensor:
    """A row of scales or zeros as Marlin stores it."""
    stored = torch.empty_like(row)
    for start in range(0, len(row), 64 if grouped else 32):
        if grouped:
            for i in range(8):
                for j in range(8):
                    stored[start + 8 * i + j] = row[start + i + 8 * j]
        else:
            for i in range(4):
                for j, place in enumerate(SINGLE):
                    stored[start + 8 * i + j] = row[start + 2 * i + place]
    return stored


def marlin(weight: QuantizedWeight) -> Tensors:
    layer, q = weight.layer, weight.q.tolist()
    qweight = Words(layer.k // 16, 2 * layer.n)
    for n in range(layer.n):
        for k in range(layer.k):
            j, r = (n % 64) // 16, n % 16
            lane = 4 * (r % 8) + (k % 8) // 2
            v = k % 2 + 2 * ((k % 16) // 8) + 4 * (r // 8)
            nibble = 32 * lane + 8 * j + v // 2 + 4 * (v % 2)
            qweight.put(k // 16, 128 * (n // 64) + nibble // 8, nibble % 8, q[n][k])
    scales = torch.stack([marlin_row(row, layer.groups > 1) for row in weight.scales])
    tensors = {"qweight": qweight.tensor, "scales": scales}
    if weight.zeros is not None:
        qzeros = Words(layer.groups, layer.n // 8)
        for group, row in enumerate(weight.zeros):
            for n, value in enumerate(marlin_row(row, grouped=True).tolist()):
                qzeros.put(group, n // 8, AWQ_PLACE[n % 8], value)
        tensors["qzeros"] = qzeros.tensor
    return tensors
