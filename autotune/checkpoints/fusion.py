"""Which linears of a model that is loaded become one, because they read the same x."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from autotune.values.errors import ShapesError
from autotune.values.layer import Layer

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""The name that the fused linear gets beside its parts."""

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""The `model_type` of models whose attention and MLP call these parts one after the other, with one x."""

ENGINE_FUSED = {
    **FUSED,
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
"""What vLLM runs as one linear, in every architecture but those of ENGINE_APART."""

ENGINE_APART = {"kimi_linear": ("qkv_proj",), "laguna": ("gate_up_proj",)}
"""Of a `model_type`, the wholes whose parts vLLM runs one by one."""


def engine_fused(model_type: str) -> dict[str, tuple[str, ...]]:
    """What vLLM runs as one linear in models of this type, as FUSED."""
    apart = ENGINE_APART.get(model_type, ())
    return {whole: parts for whole, parts in ENGINE_FUSED.items() if whole not in apart}


def fused_layer(layers: Sequence[Layer]) -> Layer | None:
    """The layer of all their rows; None where something else than n differs."""
    fused = replace(layers[0], n=sum(layer.n for layer in layers))
    return fused if all(replace(layer, n=fused.n) == fused for layer in layers) else None


def grouped(
    layers: Mapping[str, Layer], wholes: Mapping[str, tuple[str, ...]], strict: bool = False
) -> Iterator[tuple[str, Layer, tuple[str, ...]]]:
    """Each linear by itself, or those that can be fused under the name and the layer of the whole.

    `layers` are those of the linears by their names, `wholes` as FUSED; every name is in exactly one of the
    groups.

    Raises:
        ShapesError: the parts of a whole differ in more than n, where `strict` says that they must not.
    """
    rest = dict(layers)
    for name, layer in layers.items():
        if name not in rest:
            continue
        parent, _, child = name.rpartition(".")
        for whole, children in wholes.items():
            parts = tuple(f"{parent}.{each}" for each in children)
            if child not in children or not all(part in rest for part in parts):
                continue
            fused = fused_layer([rest[part] for part in parts])
            if fused is None and strict:
                differ = "; ".join(f"{part} is {rest[part]}" for part in parts)
                raise ShapesError(f"vLLM makes one {whole} of layers that differ: {differ}")
            if fused is not None:
                for part in parts:
                    del rest[part]
                yield f"{parent}.{whole}", fused, parts
        if rest.pop(name, None) is not None:
            yield name, layer, (name,)
