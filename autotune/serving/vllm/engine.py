"""What an engine's linears depend on: the device of this process, and the numbers of tokens that it runs."""

from __future__ import annotations

import sys
from typing import Any

import torch
from vllm.platforms import current_platform

from autotune.values.device import Device, find_device
from autotune.values.layer import BUCKETS, bucket_of

_BETWEEN = ("autotune.", "vllm.model_executor.kernels.")


def device() -> Device:
    """The device on which this process runs its part of the model.

    Raises:
        DeviceError: no kernel of autotune runs there.
    """
    return find_device(f"cuda:{torch.cuda.current_device()}" if current_platform.is_cuda() else "cpu")


def buckets() -> tuple[int, ...]:
    """The buckets of every number of tokens from 1 to the largest that the engine being made runs at once.

    That is the largest CUDA graph or the longest prefill; without an engine all buckets.
    """
    config = _config()
    if config is None:
        return BUCKETS
    graphs = config.compilation_config.cudagraph_capture_sizes or ()
    largest = max(config.scheduler_config.max_num_batched_tokens, *graphs, 1)
    return tuple(bucket for bucket in BUCKETS if bucket <= bucket_of(largest))


def asker() -> str:
    """The last name of vLLM's module that asks for a kernel: the method of quantization of the layer.

    What a layer does besides multiplying, its description does not tell.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].startswith(_BETWEEN):
        frame = frame.f_back
    return str(frame.f_globals["__name__"]).rpartition(".")[2]


def is_first_rank() -> bool:
    """Whether this process speaks for all that hold shards of the same model."""
    config = _config()
    return config is None or config.parallel_config.rank == 0


def _config() -> Any:
    # Not at the top: what imports vLLM's kernels, and with them this file, may be on the way to its config.
    from vllm.config import get_current_vllm_config_or_none

    return get_current_vllm_config_or_none()
