"""From the `quantization_config` of a config.json to a `Scheme`, in every spelling that writers use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.errors import FormatError
from autotune.formats.scheme import Scheme

_AWQ = {
    "gemm": "awq_gemm",
    "exllama": "awq_gemm",
    "ipex": "awq_gemm",
    "gemv": "awq_gemv",
    "gemv_fast": "awq_gemv_fast",
    "llm-awq": "awq_gemv_fast",
    "marlin": "marlin",
}
_GPTQ = ("gptq", "gptq_v2", "marlin")
_COMPRESSED = "pack-quantized"


def detect(config: Mapping[str, Any]) -> Scheme:
    """The scheme of a checkpoint, from its `quantization_config` (or AutoGPTQ's quantize_config.json).

    Raises:
        FormatError: a method, layout or number of bits that is not read; the message has the value.
    """
    method = _word(config, "quant_method", "method") or _guess(config)
    if method == "awq":
        return _awq(config)
    if method == "gptq":
        return _gptq(config)
    if method in ("compressed-tensors", "compressed_tensors"):
        return _compressed(config)
    raise FormatError(f"quant_method={method!r} is not one of awq, gptq, compressed-tensors")


def _guess(config: Mapping[str, Any]) -> str | None:
    """Files from before `quant_method` are known by a field that only their writer has."""
    if "config_groups" in config:
        return "compressed-tensors"
    if "desc_act" in config:
        return "gptq"
    return "awq" if "zero_point" in config else None


def _awq(config: Mapping[str, Any]) -> Scheme:
    version = _word(config, "version", "format", "checkpoint_format") or "gemm"
    if version not in _AWQ:
        raise FormatError(f"AWQ version={version!r} is not one of {', '.join(_AWQ)}")
    zero_point = _first(config, "zero_point")
    if zero_point is None:
        zero_point = not _first(config, "sym")
    numbers = _number(config, "group_size", "q_group_size"), _number(config, "bits", "w_bit")
    return Scheme(_AWQ[version], *numbers, zero_point=bool(zero_point))


def _gptq(config: Mapping[str, Any]) -> Scheme:
    stored = _word(config, "checkpoint_format", "format") or "gptq"
    if config.get("is_marlin_format"):
        stored = "marlin"
    if stored not in _GPTQ:
        raise FormatError(f"GPTQ checkpoint_format={stored!r} is not one of {', '.join(_GPTQ)}")
    numbers = _number(config, "group_size"), _number(config, "bits", "wbits")
    if stored == "marlin":
        return Scheme("marlin", *numbers, zero_point=False)
    return Scheme(
        "gptq",
        *numbers,
        # Who does not say has zeros that say it.
        zero_point=not config.get("sym"),
        desc_act=bool(config.get("desc_act")),
        minus_one=stored == "gptq",
    )


def _compressed(config: Mapping[str, Any]) -> Scheme:
    layout = _word(config, "format")
    if layout != _COMPRESSED:
        raise FormatError(f"compressed-tensors format={layout!r} is not {_COMPRESSED!r}")
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise FormatError(f"compressed-tensors sparsity format={sparsity!r} is not 'dense'")
    schemes = [_compressed_group(name, group) for name, group in (config.get("config_groups") or {}).items()]
    if not schemes:
        raise FormatError("compressed-tensors config_groups are missing or empty")
    if any(scheme != schemes[0] for scheme in schemes):
        raise FormatError(f"{len(schemes)} config_groups differ in their weights; only one kind is read")
    return schemes[0]


def _compressed_group(name: str, group: Mapping[str, Any]) -> Scheme:
    if group.get("input_activations"):
        raise FormatError(f"{name} quantizes activations too; only weights may be quantized")
    layout = group.get("format") or _COMPRESSED
    if layout != _COMPRESSED:
        raise FormatError(f"{name} has format={layout!r}, which is not {_COMPRESSED!r}")
    weights = group.get("weights") or {}
    kind, strategy = weights.get("type", "int"), weights.get("strategy")
    if kind != "int":
        raise FormatError(f"{name} has weights of type={kind!r}; only 'int' is read")
    if strategy not in ("group", "channel"):
        raise FormatError(f"{name} has strategy={strategy!r}, which is not one of group, channel")
    group_size = -1 if strategy == "channel" else _number(weights, "group_size")
    symmetric = weights.get("symmetric", True)
    return Scheme("compressed_tensors", group_size, _number(weights, "num_bits"), zero_point=not symmetric)


def _word(config: Mapping[str, Any], *names: str) -> str | None:
    found = _first(config, *names)
    # An enum of transformers holds its text as value.
    return None if found is None else str(getattr(found, "value", found)).lower()


def _number(config: Mapping[str, Any], *names: str) -> int:
    found = _first(config, *names)
    if not isinstance(found, int):
        raise FormatError(f"quantization_config has {names[0]}={found!r}, which is not a number")
    return found


def _first(config: Mapping[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)
