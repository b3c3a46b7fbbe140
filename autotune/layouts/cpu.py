"""The packed layout of the CPU family: 16 rows side by side, so that one vector load serves 16 outputs.

n is padded to n16 = ceil(n / 16) blocks of 16 rows; the padding has zero scales.
`qweight` int32 [n16, k/8, 16]: a word holds 8 consecutive weights of one row, as 4-bit two's complement of
q - 8 (that is q ^ 8). Nibble j of 0..3 is weight 2 j, nibble 4 + j is weight 2 j + 1, so that after a shift
by 4 j the two 16-bit halves of a word start with neighbours along k.
`scales` [n16, k/group_size, 16] in the layer's dtype; `zeros` uint8 [n16, k/group_size, 16].
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from autotune.schemes.int4 import QuantizedWeight
from autotune.values.layer import Layer

BLOCK = 16
ZEROS_DTYPE = torch.uint8
_SIGN_BITS = -0x77777778
"""0x88888888 as int32: flips the top bit of every nibble."""


def shapes(layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of qweight, scales and zeros in this layout."""
    grouped = (_blocks(layer), layer.groups, BLOCK)
    return (_blocks(layer), layer.k // 8, BLOCK), grouped, grouped


def pack(weight: QuantizedWeight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """qweight, scales and zeros in this layout."""
    layer = weight.layer
    blocks = _blocks(layer)
    q = pad(weight.q, (0, 0, 0, blocks * BLOCK - layer.n)).contiguous()
    # Pairs of neighbours along k shift as one 16-bit number; weight = 4 a + 2 b + e, byte = 2 e + a.
    pairs = q.view(torch.int16).view(-1, 2)
    halves = (pairs[:, 0] | (pairs[:, 1] << 4)).view(torch.uint8).view(-1, 2, 2)
    words = halves.transpose(1, 2).flatten().view(torch.int32).bitwise_xor_(_SIGN_BITS)
    qweight = words.view(blocks, BLOCK, layer.k // 8).transpose(1, 2).contiguous()
    zeros = None if weight.zeros is None else _to_blocks(weight.zeros, layer)
    return qweight, _to_blocks(weight.scales, layer), zeros


def unpack(
    layer: Layer, qweight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> QuantizedWeight:
    """The exact inverse of `pack`."""
    words = (qweight ^ _SIGN_BITS).transpose(1, 2).contiguous()
    halves = words.view(torch.uint8).view(-1, 2, 2).transpose(1, 2).flatten().view(torch.int16)
    low = 0x0F0F
    q = torch.stack((halves & low, (halves >> 4) & low), dim=-1).view(torch.uint8).view(-1, layer.k)
    rows = None if zeros is None else _from_blocks(zeros, layer)
    return QuantizedWeight(layer, q[: layer.n].contiguous(), _from_blocks(scales, layer), rows)


def _blocks(layer: Layer) -> int:
    return -(-layer.n // BLOCK)


def _to_blocks(grouped: torch.Tensor, layer: Layer) -> torch.Tensor:
    """[groups, n] to [n16, groups, 16]."""
    full = pad(grouped, (0, _blocks(layer) * BLOCK - layer.n))
    return full.view(layer.groups, -1, BLOCK).transpose(0, 1).contiguous()


def _from_blocks(blocks: torch.Tensor, layer: Layer) -> torch.Tensor:
    return blocks.transpose(0, 1).reshape(layer.groups, -1)[:, : layer.n].contiguous()
