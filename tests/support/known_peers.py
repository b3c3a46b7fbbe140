"""A kernel of another engine as a race sees it, and workers whose engine makes such ones or worse."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import undisturbed

from autotune.bench.operands import Operands
from autotune.bench.peer import Peer
from autotune.layouts import dequantize
from autotune.layouts.packed import Layout
from autotune.serving.vllm import peer

NAME = "vllm:DenseLinearKernel"


class Call:
    """Returns a new tensor, as engines do; `factor` 1 is right."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.calls = factor, 0

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return 0

    def run(self, x: torch.Tensor, weight: Any, bias: Any, out: torch.Tensor, workspace: Any) -> None:  # noqa: ARG002
        self.calls += 1
        self.apply(x, weight)

    def apply(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
        return (self.factor * (x.float() @ weight[0].T)).to(x.dtype)


class Checked(Call):
    def run(self, x: torch.Tensor, weight: Any, bias: Any, out: torch.Tensor, workspace: Any) -> None:  # noqa: ARG002
        out.copy_(self.apply(x, weight))
        if bias is not None:
            out += bias


def dense_peer(operands: Operands, factor: float = 1.0) -> Peer:
    """torch's matmul on the dequantized weight."""
    mine = operands.in_layout(Layout("dense", lambda weight: (dequantize(weight),)))
    return Peer(NAME, mine, Checked(factor), Call())


def work(pipe: Any, device: Any) -> None:
    """The worker's entry, with such a peer in place of vLLM's."""
    _work(pipe, device, dense_peer)


def work_with_a_peer_that_crashes(pipe: Any, device: Any) -> None:
    _work(pipe, device, lambda _: os._exit(3))


def _work(pipe: Any, device: Any, make: Callable[[Operands], Peer]) -> None:
    peer.vllm_peer = make
    undisturbed.work(pipe, device)
