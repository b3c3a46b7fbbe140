"""auto-round's own `quant_method`, whose tensors are those of GPTQ v1 or v2 or of AutoAWQ."""

from __future__ import annotations

from autotune.checkpoints.quantization import harmless
from autotune.checkpoints.quantization.fields import Fields, shown
from autotune.checkpoints.quantization.overrides import check_integers, check_overrides
from autotune.checkpoints.quantization.scheme import CheckpointScheme
from autotune.values.errors import FormatError

_V2 = ("", "exllamav2", "gptqmodel", "tritonv2", "triton", "torch")
_V1 = ("gptq", "auto_gptq")
_AWQ = ("awq", "auto_awq")


def auto_round(fields: Fields) -> CheckpointScheme:
    """The scheme of a checkpoint in auto-round's format."""
    # Until 0.4 the packing was told as the backend.
    packing = fields.word("packing_format", "backend")
    family, _, tail = (packing or "").partition(":")
    kind = tail.partition(":")[0]
    if family not in ("auto_round", "autoround") or kind not in (*_V2, *_V1, *_AWQ) or "marlin" in tail:
        raise FormatError(
            f"auto-round packing_format={shown(packing)} is not read;"
            " auto_round:auto_gptq, auto_round:gptqmodel and auto_round:auto_awq are"
        )
    symmetric = fields.flag("sym")
    is_awq = kind in _AWQ
    scheme = CheckpointScheme(
        "awq_gemm" if is_awq else "gptq",
        fields.integer("group_size"),
        fields.integer("bits"),
        zero_point=not symmetric if is_awq or symmetric is not None else None,
        minus_one=kind in _V1,
        by_word=kind in _V1,
    )
    check_integers(fields)
    check_overrides(fields, scheme)
    fields.end(harmless.LINEARS)
    return scheme
