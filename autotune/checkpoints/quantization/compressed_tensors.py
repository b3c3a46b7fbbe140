"""compressed-tensors as llm-compressor and auto-round write it."""

from __future__ import annotations

from autotune.checkpoints.quantization import harmless
from autotune.checkpoints.quantization.fields import Fields, shown
from autotune.checkpoints.quantization.scheme import CheckpointScheme
from autotune.values.errors import FormatError

_LAYOUT = "pack-quantized"
_FUSED = ("weight_input", "weight_output")
"""Where a rotation is part of the stored weights; elsewhere x, outputs or the cache rotate at each call."""


def compressed_tensors(fields: Fields) -> CheckpointScheme:
    """The scheme that all groups of a compressed-tensors checkpoint have."""
    layout = fields.word("format")
    _check_sparsity(fields)
    _check_rotations(fields)
    schemes = [_group(group, layout) for _, group in fields.inners("config_groups")]
    if not schemes:
        raise FormatError("compressed-tensors config_groups are missing or empty")
    if any(scheme != schemes[0] for scheme in schemes):
        raise FormatError(f"{len(schemes)} config_groups differ in their weights; only one kind is read")
    fields.end(harmless.COMPRESSED)
    return schemes[0]


def _group(group: Fields, layout: str | None) -> CheckpointScheme:
    layout = group.word("format") or layout
    if layout != _LAYOUT:
        raise FormatError(f"{group.where} has format={shown(layout)}, which is not {_LAYOUT!r}")
    scheme = _weights(group.inner("weights"))
    group.end(harmless.COMPRESSED_GROUP)
    return scheme


def _weights(weights: Fields) -> CheckpointScheme:
    kind = weights.word("type") or "int"
    if kind != "int":
        raise FormatError(f"{weights.where} has type={shown(kind)}; only 'int' is read")
    strategy = weights.word("strategy") or _strategy(weights)
    if strategy not in ("group", "channel"):
        raise FormatError(
            f"{weights.where} has strategy={shown(strategy)}, which is not one of group, channel"
        )
    group_size = -1 if strategy == "channel" else weights.integer("group_size")
    symmetric = weights.flag("symmetric")
    scheme = CheckpointScheme(
        "compressed_tensors", group_size, weights.integer("num_bits"), zero_point=symmetric is False
    )
    weights.end(harmless.COMPRESSED_WEIGHTS)
    return scheme


def _strategy(weights: Fields) -> str | None:
    """The one that compressed-tensors takes where none is named."""
    if weights.any("group_size") is None:
        return None
    return "channel" if weights.integer("group_size") == -1 else "group"


def _check_sparsity(fields: Fields) -> None:
    if fields.any("sparsity_config"):
        layout = fields.inner("sparsity_config").word("format") or "dense"
        if layout != "dense":
            raise FormatError(f"compressed-tensors sparsity format={shown(layout)} is not 'dense'")


def _check_rotations(fields: Fields) -> None:
    if not fields.any("transform_config"):
        return
    rotations = fields.inner("transform_config")
    for _, group in rotations.inners("config_groups"):
        for place in group.list("apply"):
            location = place.word("location")
            if location not in _FUSED:
                raise place.refused("location", location)
    rotations.end(())
