"""What GPTQModel and auto-round say of single linears, and of the numbers that are not the weights'."""

from __future__ import annotations

from autotune.checkpoints.quantization import harmless
from autotune.checkpoints.quantization.fields import Fields
from autotune.checkpoints.quantization.scheme import CheckpointScheme

_INTEGERS = ("int", "int_sym", "int_asym", "rtn_int_sym", "opt_rtn_int_sym")
_SPELLINGS = {"bits": "bits", "wbits": "bits", "group_size": "group_size", "desc_act": "desc_act"}


def check_integers(fields: Fields) -> None:
    """FormatError unless weights are integers and activations are left as they are."""
    data_type = fields.word("data_type")
    if data_type is not None and data_type not in _INTEGERS:
        raise fields.refused("data_type", data_type)
    if fields.any("act_bits") is not None and fields.integer("act_bits") < 16:
        raise fields.refused("act_bits", fields.integer("act_bits"))


def check_overrides(fields: Fields, scheme: CheckpointScheme) -> None:
    """FormatError unless what is said of single linears is what holds for all, or that one is not quantized.

    `dynamic` of GPTQModel has patterns of names; those that start with `-:` are of linears that stay as they
    were. `extra_config` of auto-round has names, with 16 bits for such linears.
    """
    for key in ("dynamic", "extra_config"):
        for _, override in fields.inners(key, without="-:"):
            _check_override(override, scheme)


def _check_override(override: Fields, scheme: CheckpointScheme) -> None:
    bits = override.any("bits")
    if isinstance(bits, int) and bits >= 16:
        return
    for spelling, field in _SPELLINGS.items():
        found = override.any(spelling)
        if found is not None and found != getattr(scheme, field):
            raise override.refused(spelling, found)
    # Where zeros are read, those of symmetric linears are too.
    if override.flag("sym") is False and scheme.zero_point is False:
        raise override.refused("sym", False)
    check_integers(override)
    override.end(harmless.LINEARS)
