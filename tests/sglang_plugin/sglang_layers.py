"""Linears of the installed SGLang on the CPU, and checkpoints for them, packed by the slow packers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import packers
import torch
from sglang.srt.layers.quantization.awq import AWQMarlinConfig
from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from sglang.srt.layers.quantization.gptq import GPTQMarlinConfig
from sglang.srt.runtime_context import get_parallel

from autotune.layouts import QuantizedWeight

Packer = Callable[[QuantizedWeight], packers.Tensors]


@contextmanager
def rank_of(rank: int, size: int) -> Iterator[None]:
    """Linears made inside are those of one of `size` tensor parallel ranks; no process group is there."""
    with get_parallel().override(tp_rank=rank, tp_size=size):
        yield


def awq(group_size: int) -> AWQMarlinConfig:
    return AWQMarlinConfig.from_config(
        {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True}
    )


def gptq(group_size: int, desc_act: bool = False, bits: int = 4) -> GPTQMarlinConfig:
    return GPTQMarlinConfig.from_config(
        {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": desc_act, "sym": True}
    )


def compressed_tensors(
    group_size: int, symmetric: bool = True, actorder: str | None = None
) -> CompressedTensorsConfig:
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "actorder": actorder}
    weights |= (
        {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
    )
    return CompressedTensorsConfig.from_config(
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": [],
        }
    )


def load(linear: torch.nn.Module, tensors: packers.Tensors, part: Any = None) -> None:
    """Load a checkpoint's tensors as SGLang's models do; `part` says which of a merged linear's they are."""
    for name, tensor in tensors.items():
        parameter = getattr(linear, name, None)
        if parameter is None:
            continue
        loader = parameter.weight_loader
        if part is None:
            loader(parameter, tensor)
        else:
            loader(parameter, tensor, part)


def finish(linear: torch.nn.Module) -> None:
    """What SGLang's model loader does once a linear has its weights."""
    linear.quant_method.process_weights_after_loading(linear)


def call(linear: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What SGLang's linears do with x, without what they do for other ranks."""
    return linear.quant_method.apply(linear, x, linear.bias)
