"""How a model's linears are split among devices, by the names of their projections.

Attention and MLP are split by columns of the output (n), then by rows of the input (k), as all engines do; so
vLLM's ColumnParallelLinear, QKVParallelLinear and RowParallelLinear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from autotune.values.errors import LayerError, ShapesError
from autotune.values.layer import Layer, shard_layer

_QUERIES = ("q_proj",)
_KEYS_AND_VALUES = ("k_proj", "v_proj")
_ALL_HEADS = ("qkv_proj",)
_ALONG_N = (
    *("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h", "lm_head"),
    *("in_proj_qkv", "in_proj_z", "in_proj_qkvz", "in_proj_b", "in_proj_a", "in_proj_ba"),
)
_ALONG_K = ("o_proj", "out_proj", "dense", "down_proj", "fc2", "c_proj", "dense_4h_to_h")


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads of attention a model has, and how many of them are for keys and for values each."""

    query: int
    key_value: int

    def shard(self, tp: int) -> Heads:
        """Those of one of `tp` devices; a key-value head is repeated where there are fewer than devices.

        Raises:
            ShapesError: they do not split.
        """
        query = split("num_attention_heads", self.query, tp)
        if self.key_value < tp and tp % self.key_value == 0:
            return Heads(query, 1)
        return Heads(query, split("num_key_value_heads", self.key_value, tp))


def split(name: str, value: int, tp: int) -> int:
    """One of `tp` equal parts.

    Raises:
        ShapesError: there are none.
    """
    if value % tp:
        raise ShapesError(f"tp={tp} does not divide {name}={value}")
    return value // tp


def shard_named(layers: Mapping[str, Layer], heads: Heads, tp: int, whole_groups: bool) -> dict[str, Layer]:
    """The part of each layer that one of `tp` devices has; `layers` are those of the linears by their names.

    `whole_groups` as in `shard_along_k`.

    Raises:
        ShapesError: a name tells no role, or a layer does not split.
    """
    found = {}
    for name, layer in layers.items():
        try:
            found[name] = _shard(name.rpartition(".")[2], layer, heads, tp, whole_groups)
        except (LayerError, ShapesError) as error:
            raise ShapesError(f"{name} ({layer}): {error}") from None
    return found


def _shard(role: str, layer: Layer, heads: Heads, tp: int, whole_groups: bool) -> Layer:
    if role in _ALONG_K:
        return shard_along_k(layer, tp, whole_groups)
    if role in _ALONG_N:
        return shard_layer(layer, 0, tp)
    part = heads.shard(tp)
    if role in _QUERIES:
        return _rows(layer, heads.query, part.query)
    if role in _KEYS_AND_VALUES:
        return _rows(layer, heads.key_value, part.key_value)
    if role in _ALL_HEADS:
        return _rows(layer, heads.query + 2 * heads.key_value, part.query + 2 * part.key_value)
    raise ShapesError(f"how {role} is split with tp={tp} is not known; give n=...,k=... of its shard")


def _rows(layer: Layer, heads: int, of_them: int) -> Layer:
    """The layer of some of its heads."""
    if layer.n % heads:
        raise ShapesError(f"n={layer.n} is not a multiple of its {heads} heads")
    return replace(layer, n=layer.n // heads * of_them)


def shard_along_k(layer: Layer, tp: int, whole_groups: bool) -> Layer:
    """The part that one of `tp` devices has of the layer's input.

    A shard that starts inside a group has smaller groups, as `shard_layer` makes them; `whole_groups` refuses
    it, as vLLM does.

    Raises:
        ShapesError: it is refused.
        LayerError: no kernel takes a shard's numbers.
    """
    shard = shard_layer(layer, 1, tp)
    if whole_groups and layer.groups > 1 and shard.group_size != layer.group_size:
        raise ShapesError(
            f"tp={tp} makes a shard of k={shard.k} that starts inside a group of {layer.group_size},"
            " which vLLM refuses; use a smaller tp"
        )
    return shard
