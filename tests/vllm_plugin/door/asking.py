"""What vLLM asks of a kernel, for tests of the answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.model_executor.kernels.linear import MPLinearLayerConfig
from vllm.scalar_type import scalar_types

from autotune.serving import vllm as plugin
from autotune.values.layer import Layer

LAYER = Layer(256, 128, group_size=64, zero_point=True)


def config_of(**changes: Any) -> MPLinearLayerConfig:
    told: dict[str, Any] = {
        "full_weight_shape": (LAYER.k, LAYER.n),
        "partition_weight_shape": (LAYER.k, LAYER.n),
        "weight_type": scalar_types.uint4,
        "act_type": torch.float16,
        "group_size": 64,
        "zero_points": True,
    }
    if "has_g_idx" in MPLinearLayerConfig.__dataclass_fields__:
        told["has_g_idx"] = False
    return MPLinearLayerConfig(**{**told, **changes})


def start(monkeypatch: pytest.MonkeyPatch, mode: str | None) -> None:
    if mode is not None:
        monkeypatch.setenv(plugin.VARIABLE, mode)
    plugin.register()
