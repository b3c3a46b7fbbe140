"""AWQ as AutoAWQ, llm-awq, GPTQModel, auto-round and transformers write it."""

from __future__ import annotations

from autotune.checkpoints.quantization import harmless
from autotune.checkpoints.quantization.fields import Fields, shown
from autotune.checkpoints.quantization.overrides import check_integers, check_overrides
from autotune.checkpoints.quantization.scheme import CheckpointScheme
from autotune.values.errors import FormatError

_FORMATS = {
    "gemm": "awq_gemm",
    "exllama": "awq_gemm",
    "ipex": "awq_gemm",
    "gemv": "awq_gemv",
    "gemv_fast": "awq_gemv_fast",
    "llm-awq": "awq_gemv_fast",
    "marlin": "marlin",
}


def awq(fields: Fields) -> CheckpointScheme:
    """The scheme of an AWQ checkpoint."""
    version = fields.word("version", "format", "checkpoint_format") or "gemm"
    if version not in _FORMATS:
        raise FormatError(f"AWQ version={shown(version)} is not one of {', '.join(_FORMATS)}")
    zero_point, symmetric = fields.flag("zero_point"), fields.flag("sym")
    if zero_point is None:
        zero_point = not symmetric
    scheme = CheckpointScheme(
        _FORMATS[version],
        fields.integer("group_size", "q_group_size"),
        fields.integer("bits", "w_bit"),
        zero_point,
    )
    check_integers(fields)
    check_overrides(fields, scheme)
    fields.end(harmless.LINEARS)
    return scheme
