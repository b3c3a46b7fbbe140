"""Two int4 kernels of one's own, tuned by `autotune sweep --kernel benchmarks/own_kernel.py:NAME`.

`torch_chunks` is plain torch on a CPU and reads the canonical weight. `triton_gemm` is Triton on a GPU and
packs a weight of its own: words int32 [k/8, n] with nibble i of word j the weight 8 j + i, scales and zeros
[k/group_size, n]. It splits k into parts whose fp32 sums are added in order, so that results repeat.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import autotune
from autotune import Config, Problem
from autotune.layouts import QuantizedWeight

_BLOCK_K = 32


@autotune.kernel(space={"rows": (4096, 1024, 256, 64)}, device="cpu")
def torch_chunks(x: torch.Tensor, weight: QuantizedWeight, out: torch.Tensor, *, rows: int) -> None:
    """Dequantise `rows` rows of n at a time, so that they are still in the cache when they are multiplied."""
    layer = weight.layer
    for start in range(0, layer.n, rows):
        part = slice(start, start + rows)
        q = weight.q[part].view(-1, layer.groups, layer.group_size).float()
        zeros = 8 if weight.zeros is None else weight.zeros[:, part].T.unsqueeze(2)
        dense = (q - zeros) * weight.scales[:, part].float().T.unsqueeze(2)
        out[:, part] = x.float() @ dense.view(-1, layer.k).T


@dataclass
class Words:
    """What `triton_gemm` reads."""

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor


def to_words(weight: QuantizedWeight) -> Words:
    """The weight with k packed eight to a word."""
    layer = weight.layer
    nibbles = weight.q.T.reshape(layer.k // 8, 8, layer.n).to(torch.int32)
    words = torch.zeros_like(nibbles[:, 0])
    for place in range(8):
        words |= nibbles[:, place] << (4 * place)
    zeros = torch.full_like(weight.scales, 8) if weight.zeros is None else weight.zeros
    tensors = (words, weight.scales, zeros.to(weight.scales.dtype))
    return Words(*(tensor.contiguous() for tensor in tensors))


def fits(problem: Problem, config: Config) -> str | None:
    """Groups hold whole blocks of k, and a block of m is not more than twice what m fills."""
    block_m = config["block_m"]
    if problem.layer.group_size % _BLOCK_K:
        return f"group_size={problem.layer.group_size} is not a multiple of {_BLOCK_K}"
    if block_m > 16 and block_m >= 2 * problem.m:
        return f"block_m={block_m} is more than m={problem.m} fills"
    return None


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

if triton is not None:

    @triton.jit
    def _gemm(
        x, words, scales, zeros, target, m, n, k, group_size,
        block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, split_k: tl.constexpr,
    ):  # fmt: skip
        part = tl.program_id(2)
        row = tl.program_id(1) * block_m + tl.arange(0, block_m)
        column = tl.program_id(0) * block_n + tl.arange(0, block_n)
        inner = tl.arange(0, block_k)
        rows, columns = row[:, None] < m, column[None, :] < n
        total = tl.zeros((block_m, block_n), dtype=tl.float32)
        for block in range(part, k // block_k, split_k):
            here = block * block_k + inner
            group = block * block_k // group_size * n + column[None, :]
            a = tl.load(x + row[:, None] * k + here[None, :], mask=rows, other=0.0)
            word = tl.load(words + here[:, None] // 8 * n + column[None, :], mask=columns, other=0)
            nibble = (word >> (here[:, None] % 8 * 4)) & 15
            zero = tl.load(zeros + group, mask=columns, other=0.0).to(tl.float32)
            scale = tl.load(scales + group, mask=columns, other=0.0).to(tl.float32)
            dense = (nibble.to(tl.float32) - zero) * scale
            total = tl.dot(a, dense.to(a.dtype), total)
        place = target + part * m * n + row[:, None] * n + column[None, :]
        tl.store(place, total.to(target.dtype.element_ty), mask=rows & columns)

    @autotune.kernel(
        space={"split_k": (1, 2, 4, 8), "block_m": (16, 32, 64), "block_n": (64, 128), "warps": (4, 8)},
        default={"block_n": 64, "split_k": 4},
        pack=to_words,
        supports=fits,
    )
    def triton_gemm(
        x: torch.Tensor,
        weight: Words,
        out: torch.Tensor,
        *,
        split_k: int,
        block_m: int,
        block_n: int,
        warps: int,
    ) -> None:
        """One tile of out for each program; with split_k > 1 the parts are added by torch."""
        (m, k), n = x.shape, out.shape[1]
        parts = out if split_k == 1 else x.new_empty((split_k, m, n), dtype=torch.float32)
        _gemm[(triton.cdiv(n, block_n), triton.cdiv(m, block_m), split_k)](
            x, weight.words, weight.scales, weight.zeros, parts, m, n, k, k // len(weight.scales),
            block_m=block_m, block_n=block_n, block_k=_BLOCK_K, split_k=split_k, num_warps=warps,
        )  # fmt: skip
        if split_k > 1:
            out.copy_(parts.sum(dim=0))
