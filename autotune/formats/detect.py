"""From the `quantization_config` of a config.json to a `TensorScheme`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from autotune.checkpoints.quantization import parse_quantization
from autotune.formats.scheme import TensorScheme


def detect(config: Any) -> TensorScheme:
    """The scheme of a checkpoint, from its `quantization_config` (or AutoGPTQ's quantize_config.json).

    Raises:
        FormatError: as parse_quantization.
    """
    return TensorScheme(**asdict(parse_quantization(config)))
