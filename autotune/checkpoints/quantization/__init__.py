"""The `quantization_config` of a checkpoint, in every spelling that writers use, without torch.

    scheme = parse_quantization(json.load(file)["quantization_config"])

A key that is not known, and whose value is neither null, false nor empty, is an error that names it: it may
change what the model computes. `harmless.py` lists the keys that are known not to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autotune.checkpoints.quantization.auto_round import auto_round
from autotune.checkpoints.quantization.awq import awq
from autotune.checkpoints.quantization.compressed_tensors import compressed_tensors
from autotune.checkpoints.quantization.fields import Fields, shown
from autotune.checkpoints.quantization.gptq import gptq
from autotune.checkpoints.quantization.scheme import CheckpointScheme
from autotune.values.errors import FormatError

__all__ = ["CheckpointScheme", "parse_quantization"]

_METHODS: Mapping[str, Callable[[Fields], CheckpointScheme]] = {
    "awq": awq,
    "gptq": gptq,
    "compressed-tensors": compressed_tensors,
    "auto-round": auto_round,
}
_SPELLINGS = {"compressed_tensors": "compressed-tensors", "intel/auto-round": "auto-round"}


def parse_quantization(config: Any) -> CheckpointScheme:
    """The scheme of a checkpoint, from its `quantization_config` (or AutoGPTQ's quantize_config.json).

    Raises:
        FormatError: it is no object, or has a method, layout or number of bits that is not read, a value of a
            wrong type, or a key that may change what the model computes; the message has key and value.
    """
    fields = Fields(config)
    told = fields.word("quant_method", "method") or _guess(fields)
    method = _METHODS.get(_SPELLINGS.get(told, told))
    if method is None:
        raise FormatError(f"quant_method={shown(told or None)} is not one of {', '.join(_METHODS)}")
    return method(fields)


def _guess(fields: Fields) -> str:
    """Files from before `quant_method` are known by a field that only their writer has."""
    if fields.has("config_groups"):
        return "compressed-tensors"
    if any(map(fields.has, ("desc_act", "wbits"))):
        return "gptq"
    return "awq" if fields.has("zero_point") else ""
