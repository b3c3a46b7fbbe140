"""GPTQ as GPTQModel, AutoGPTQ, GPTQ-for-LLaMa, optimum, auto-round and transformers write it."""

from __future__ import annotations

from autotune.checkpoints.quantization import harmless
from autotune.checkpoints.quantization.fields import Fields, shown
from autotune.checkpoints.quantization.overrides import check_integers, check_overrides
from autotune.checkpoints.quantization.scheme import CheckpointScheme
from autotune.values.errors import FormatError

_FORMATS = ("gptq", "gptq_v2", "marlin")
_BY_WORD = ("gptqmodel", "auto-round", "auto_round")
"""Writers of v1 that subtract 0x11111111 from the packed word, or sum up nibbles of -1, which is the same."""


def gptq(fields: Fields) -> CheckpointScheme:
    """The scheme of a GPTQ checkpoint."""
    stored = fields.word("checkpoint_format", "format") or "gptq"
    if fields.flag("is_marlin_format"):
        stored = "marlin"
    if stored not in _FORMATS:
        raise FormatError(f"GPTQ checkpoint_format={shown(stored)} is not one of {', '.join(_FORMATS)}")
    numbers = fields.integer("group_size", "groupsize"), fields.integer("bits", "wbits")
    symmetric, by_word = fields.flag("sym"), _subtracts_by_word(fields)
    if stored == "marlin":
        # It has neither zeros nor an order of columns.
        scheme = CheckpointScheme("marlin", *numbers, zero_point=False)
    else:
        scheme = CheckpointScheme(
            "gptq",
            *numbers,
            zero_point=None if symmetric is None else not symmetric,
            desc_act=bool(fields.flag("desc_act")),
            minus_one=stored == "gptq",
            by_word=by_word and stored == "gptq",
        )
    check_integers(fields)
    check_overrides(fields, scheme)
    fields.end(harmless.LINEARS)
    return scheme


def _subtracts_by_word(fields: Fields) -> bool:
    """Whether the file says that one of those wrote it."""
    meta = fields.any("meta")
    told = [
        meta.get("quantizer") if isinstance(meta, dict) else None,
        *map(fields.any, ("quantizer", "provider")),
    ]
    named = " ".join(map(str, told)).lower()
    return fields.has("autoround_version") or any(writer in named for writer in _BY_WORD)
