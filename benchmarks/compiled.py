"""Decoder blocks of a transformers model, compiled: few kernels are left between the linears."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch

_TOGETHER = 4
"""Blocks in one graph: all its sums but the last are part of the norms that follow. More compile longer."""
_CACHE_NAMES = ("cache", "past_key_values")
"""What transformers calls the keys and values: the first as of 5.24."""


class Blocks(torch.nn.Module):
    """Consecutive decoder blocks, run by a compiled function.

    They find their keys and values by the place in these blocks, in a cache of these blocks only, so that all
    of a model's look alike and the function is compiled once for them.
    """

    def __init__(self, blocks: list[Any], first: int, run: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)
        self._first, self._run = first, run
        for index, block in enumerate(blocks):
            block.self_attn.layer_idx = index

    def forward(self, hidden: torch.Tensor, **others: Any) -> torch.Tensor:
        """What the blocks make of the hidden states, one after the other."""
        name = next(each for each in _CACHE_NAMES if each in others)
        part = copy(others[name])
        part.layers = part.layers[self._first : self._first + len(self.blocks)]
        return self._run(self.blocks, hidden, **others | {name: part})


def _through(blocks: torch.nn.ModuleList, hidden: torch.Tensor, **others: Any) -> torch.Tensor:
    for block in blocks:
        hidden = block(hidden, **others)
    return hidden


def _options(device: torch.device) -> dict[str, bool]:
    """Kernels that do not wait for each other share a launch; from sm_90 on kernels also start before those
    ahead of them have ended, as our own do.
    """
    early = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"combo_kernels": True, "triton.enable_pdl": early}


def compile_blocks(model: Any) -> None:
    """From now on the model runs compiled, but for what is once a token: the embedding and the head.

    Each shape is compiled for when it is met. What is inside a block is transformers' own code as before.
    """
    # Models share the function's code, and its graphs count together.
    torch._dynamo.config.recompile_limit = 64
    inner, options = model.model, _options(model.device)
    run = torch.compile(_through, fullgraph=True, dynamic=False, options=options)
    blocks = list(inner.layers)
    inner.layers = torch.nn.ModuleList(
        Blocks(blocks[first : first + _TOGETHER], first, run) for first in range(0, len(blocks), _TOGETHER)
    )
    for part in (inner.norm, inner.rotary_emb):
        part.compile(dynamic=False, options=options)
