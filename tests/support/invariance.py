"""Whether a layer's rows have the same bits with any number of other rows."""

from __future__ import annotations

import torch
from runtime_tools import weight_of

from autotune.records.lookup import Lookup
from autotune.runtime.linear import Int4Linear
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.layer import Layer

TOKENS = (1, 2, 3, 5, 8, 9, 16, 31, 33, 64, 65, 100, 128, 129, 255, 256, 300, 512, 513, 700, 1025, 2050, 4100)


def assert_batch_invariant(layer: Layer, lookup: Lookup, tokens: tuple[int, ...] = TOKENS) -> None:
    """Each number of tokens gives the first rows, a random one and one of zeros, the bits that one gives."""
    device = lookup.device.torch_name
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(max(tokens), layer.k, generator=generator).to(TORCH_DTYPES[layer.dtype]).to(device)
    x[1] = 0
    bias = torch.randn(layer.n, generator=generator).to(x)
    linear = Int4Linear.from_quantized(weight_of(layer, device=device), bias, lookup=lookup)
    alone = [linear(x[row : row + 1])[0] for row in range(2)]
    for m in tokens:
        out = linear(x[:m])
        for row in range(min(m, 2)):
            different = (out[row].view(torch.uint8) != alone[row].view(torch.uint8)).sum()
            assert not different, f"row {row} of {m} of {layer}, {linear.plans.answer(m).config}"
