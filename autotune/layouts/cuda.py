"""The one packed layout of every CUDA family: weights in the register order of mma.m16n8k16's A operand.

`qweight` int32 [n64, k64, 4, 32, 4]: blocks of 64 x 64; inside a block, for each 16 rows and each lane, one
word per 16 of k whose nibbles p = 0..7 are the lane's a0.lo a1.lo a2.lo a3.lo a0.hi a1.hi a2.hi a3.hi.
`scales` [groups, n64, 8, 8] and the nibbles of `zeros` int32 [groups, n64, 8] stand in the order in which
lanes read them: element [.., g, j] belongs to row g + 8 j of the block. n and k are padded to 64; the padding
has zero scales and zero nibbles, and `groups` covers the padded k.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from autotune.schemes.int4 import QuantizedWeight
from autotune.values.layer import Layer

BLOCK = 64
ZEROS_DTYPE = torch.int32


def padded(size: int) -> int:
    """size rounded up to a multiple of 64."""
    return -(-size // BLOCK) * BLOCK


def padded_groups(layer: Layer) -> int:
    """Number of groups that cover the padded k."""
    return -(-padded(layer.k) // layer.group_size)


def shapes(layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of qweight, scales and zeros in this layout."""
    n64, k64 = padded(layer.n) // BLOCK, padded(layer.k) // BLOCK
    groups = padded_groups(layer)
    return (n64, k64, 4, 32, 4), (groups, n64, 8, 8), (groups, n64, 8)


def pack(weight: QuantizedWeight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """qweight, scales and zeros in this layout."""
    layer = weight.layer
    n64, k64 = padded(layer.n) // BLOCK, padded(layer.k) // BLOCK
    q = pad(weight.q, (0, padded(layer.k) - layer.k, 0, padded(layer.n) - layer.n))
    # Row = 16 b + 8 half + g, column = 16 s + 8 upper + 2 t + e; nibble p = 4 e + 2 upper + half.
    q = q.view(n64, 4, 2, 8, k64, 4, 2, 4, 2).permute(0, 4, 1, 3, 7, 5, 8, 6, 2)
    qweight = _nibbles_to_words(q.reshape(n64, k64, 4, 32, 4, 8))
    scales = _to_lane_order(weight.scales, layer).contiguous()
    if weight.zeros is None:
        return qweight, scales, None
    return qweight, scales, _nibbles_to_words(_to_lane_order(weight.zeros, layer))


def unpack(
    layer: Layer, qweight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> QuantizedWeight:
    """The exact inverse of `pack`."""
    n64, k64 = padded(layer.n) // BLOCK, padded(layer.k) // BLOCK
    q = _words_to_nibbles(qweight).view(n64, k64, 4, 8, 4, 4, 2, 2, 2).permute(0, 2, 8, 3, 1, 5, 7, 4, 6)
    q = q.reshape(padded(layer.n), padded(layer.k))[: layer.n, : layer.k].contiguous()
    rows = None if zeros is None else _from_lane_order(_words_to_nibbles(zeros), layer)
    return QuantizedWeight(layer, q, _from_lane_order(scales, layer), rows)


def _to_lane_order(grouped: torch.Tensor, layer: Layer) -> torch.Tensor:
    """[groups, n] to [padded groups, n64, g: 8, j: 8], row g + 8 j."""
    extra = padded_groups(layer) - layer.groups
    full = pad(grouped, (0, padded(layer.n) - layer.n, 0, extra))
    return full.view(full.shape[0], -1, 8, 8).transpose(2, 3)


def _from_lane_order(lanes: torch.Tensor, layer: Layer) -> torch.Tensor:
    rows = lanes.transpose(2, 3).reshape(lanes.shape[0], -1)
    return rows[: layer.groups, : layer.n].contiguous()


def _nibbles_to_words(nibbles: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 8] to int32 [...], nibble i in bits 4i to 4i + 3."""
    pairs = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return pairs.contiguous().view(torch.int32).squeeze(-1)


def _words_to_nibbles(words: torch.Tensor) -> torch.Tensor:
    """int32 [...] to uint8 [..., 8]."""
    pairs = words.contiguous().unsqueeze(-1).view(torch.uint8)
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)
