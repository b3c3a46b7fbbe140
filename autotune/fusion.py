"""Which linears of a model that is loaded become one, because they read the same x."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from autotune.layer import Layer

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""The name that the fused linear gets beside its parts."""

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""The `model_type` of models whose attention and MLP call these parts one after the other, with one x."""


def fused_layer(layers: Sequence[Layer]) -> Layer | None:
    """The layer of all their rows; None where something else than n differs."""
    fused = replace(layers[0], n=sum(layer.n for layer in layers))
    return fused if all(replace(layer, n=fused.n) == fused for layer in layers) else None


def grouped(layers: Mapping[str, Layer], fuse: bool) -> Iterator[tuple[str, Layer, tuple[str, ...]]]:
    """Each linear by itself, or those that can be fused under the name and the layer of the whole.

    `layers` are those of the linears by their names; every name is in exactly one of the groups.
    """
    rest = dict(layers)
    wholes = FUSED if fuse else {}
    for name, layer in layers.items():
        if name not in rest:
            continue
        parent, _, child = name.rpartition(".")
        for whole, children in wholes.items():
            parts = tuple(f"{parent}.{each}" for each in children)
            if child not in children or not all(part in rest for part in parts):
                continue
            fused = fused_layer([rest[part] for part in parts])
            if fused is not None:
                for part in parts:
                    del rest[part]
                yield f"{parent}.{whole}", fused, parts
        if rest.pop(name, None) is not None:
            yield name, layer, (name,)
