"""From the `quantization_config` of a config.json to a `Scheme`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from autotune.checkpoints.quantization import parse_quantization
from autotune.formats.scheme import Scheme


def detect(config: Any) -> Scheme:
    """The scheme of a checkpoint, from its `quantization_config` (or AutoGPTQ's quantize_config.json).

    Raises:
        FormatError: as parse_quantization.
    """
    return Scheme(**asdict(parse_quantization(config)))
