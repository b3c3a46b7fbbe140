"""The int4 layers of a checkpoint, from the headers of its files: names and shapes, no weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotune.checkpoints.quantization import CheckpointScheme
from autotune.checkpoints.weights import Header, find_weights, read_headers, read_json
from autotune.values.errors import AutotuneError, FormatError, LayerError
from autotune.values.layer import Layer

DTYPES = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}

_OLD_CONFIGS = ("quantize_config.json", "quant_config.json")
"""Where AutoGPTQ and AutoAWQ said how a checkpoint is quantized before config.json did."""

_Sizes = Callable[[int, int], tuple[int, int]]
_WEIGHTS: Mapping[str, tuple[tuple[str, ...], _Sizes]] = {
    "awq_gemm": (("qweight",), lambda rows, columns: (8 * columns, rows)),
    "awq_gemv": (("qweight",), lambda rows, columns: (rows, 8 * columns)),
    "awq_gemv_fast": (("qweight",), lambda rows, columns: (4 * rows, columns)),
    "compressed_tensors": (("weight_packed",), lambda rows, columns: (rows, 8 * columns)),
    "gptq": (("qweight",), lambda rows, columns: (columns, 8 * rows)),
    "marlin": (("qweight", "B"), lambda rows, columns: (columns // 2, 16 * rows)),
}
"""The last names of a format's weight, and n and k of its shape."""

_FIRST_NAMES = {"qweight", "weight_packed"}

_LEFT_OUT = re.compile(r"(model\.)?(mtp|visual)\.")
"""Parts of a checkpoint that no causal language model of transformers has; it passes over their names."""


def quantization_of(config: Path) -> Any:
    """What a checkpoint says of its quantization, in config.json or beside it; None where it says nothing.

    Raises:
        FormatError: a file does not read.
    """
    document = read_json(config)
    text = document.get("text_config")
    told = document.get("quantization_config")
    if not told and isinstance(text, dict):
        told = text.get("quantization_config")
    for name in _OLD_CONFIGS:
        if not told and (config.parent / name).exists():
            told = read_json(config.parent / name)
    return told or None


def stored_layers(folder: Path, scheme: CheckpointScheme, dtype: str | None) -> dict[str, Layer]:
    """The layer of each int4 linear by its name; without those that no kernel takes, which load makes dense.

    `dtype` is what the model computes in, by default that of the first floating tensor.

    Raises:
        FormatError: a file does not read, or has no int4 linear of the scheme's format.
        LayerError: no kernel takes any of them; the message has the name of one.
    """
    headers = read_headers(find_weights(folder).files)
    floating = (DTYPES[header.dtype] for header in headers.values() if header.dtype in DTYPES)
    dtype = dtype or next(floating, "fp16")
    lasts, sizes = _WEIGHTS[scheme.format]
    found: dict[str, Layer] = {}
    refused: AutotuneError = FormatError(f"{folder}: no linear is quantized in the format {scheme.format}")
    for name, header in headers.items():
        linear, _, last = name.rpartition(".")
        if last in lasts and _LEFT_OUT.match(name) is None:
            n, k = sizes(*_two(name, header))
            try:
                found[linear] = scheme.layer(n, k, dtype)
            except LayerError as error:
                refused = LayerError(f"{linear}: {error}")
        elif last in _FIRST_NAMES - set(lasts):
            raise FormatError(f"{folder} has {name}, which is of no {scheme.format} checkpoint")
    if not found:
        raise refused
    return found


def _two(name: str, header: Header) -> tuple[int, int]:
    if len(header.shape) != 2:
        raise FormatError(f"{name} is {list(header.shape)}, expected two dimensions")
    return header.shape[0], header.shape[1]
