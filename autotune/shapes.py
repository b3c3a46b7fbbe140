"""The layers of a model: from a preset's name, a Hugging Face config.json, or explicit numbers."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.errors import FormatError, LayerError, ShapesError
from autotune.layer import Layer, shard_layer
from autotune.quantization import parse_quantization

_DTYPES = {"float16": "fp16", "half": "fp16", "bfloat16": "bf16"}
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_EXPLICIT = ("n", "k", "group_size", "dtype", "zero_point")


@dataclass(frozen=True, slots=True)
class Shape:
    """A layer and the projections of the model that have it; explicit numbers belong to none."""

    projections: tuple[str, ...]
    layer: Layer


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a layer has beside n and k; None where nobody said."""

    group_size: int | None = None
    dtype: str | None = None
    zero_point: bool | None = None

    def over(self, other: Quantization) -> Quantization:
        """What this says, and what `other` says where this is silent."""
        return Quantization(
            other.group_size if self.group_size is None else self.group_size,
            other.dtype if self.dtype is None else self.dtype,
            other.zero_point if self.zero_point is None else self.zero_point,
        )

    def layer(self, n: int, k: int) -> Layer:
        """A layer of n x k; what nobody said is group size 128, fp16, with zeros."""
        group_size = 128 if self.group_size is None else self.group_size
        return Layer(n, k, group_size, self.dtype or "fp16", self.zero_point is not False)


@dataclass(frozen=True, slots=True)
class Decoder:
    """The numbers of a Llama-like decoder block, named as in config.json."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128

    def projections(self, tp: int) -> dict[str, tuple[int, int]]:
        """n and k of each projection on one of `tp` devices, fused ones first.

        qkv, gate and up are split along n (whole heads; a key-value head is repeated where there are
        fewer of them than devices), o and down along k.

        Raises:
            ShapesError: `tp` does not divide what it splits.
        """
        heads = _split("num_attention_heads", self.num_attention_heads, tp)
        if self.num_key_value_heads < tp and tp % self.num_key_value_heads == 0:
            kv_heads = 1
        else:
            kv_heads = _split("num_key_value_heads", self.num_key_value_heads, tp)
        q, kv = heads * self.head_dim, kv_heads * self.head_dim
        inner, hidden = _split("intermediate_size", self.intermediate_size, tp), self.hidden_size
        return {
            "qkv": (q + 2 * kv, hidden),
            "q": (q, hidden),
            "k": (kv, hidden),
            "v": (kv, hidden),
            "o": (hidden, q),
            "gate_up": (2 * inner, hidden),
            "gate": (inner, hidden),
            "up": (inner, hidden),
            "down": (hidden, inner),
        }


PRESETS: Mapping[str, Decoder] = {
    "llama7b": Decoder(4096, 11008, 32, 32),
    "llama13b": Decoder(5120, 13824, 40, 40),
    "llama70b": Decoder(8192, 28672, 64, 8),
    "llama3-8b": Decoder(4096, 14336, 32, 8),
    "llama3-70b": Decoder(8192, 28672, 64, 8),
    "mistral-7b": Decoder(4096, 14336, 32, 8),
    "qwen2.5-7b": Decoder(3584, 18944, 28, 4),
    "qwen2.5-32b": Decoder(5120, 27648, 40, 8),
}


def parse_shapes(
    text: str,
    group_size: int | None = None,
    dtype: str | None = None,
    zero_point: bool | None = None,
    tp: int = 1,
) -> list[Shape]:
    """The distinct layers that `text` means, in the order in which it names them.

    `text` is one or several, separated by `;`, of: a preset; a config.json of a Llama-like model or a
    folder that has one; `n=4096,k=4096`, with `group_size=`, `dtype=` and `zero_point=` if wanted. The other
    arguments fill in what explicit numbers leave open and override what a config.json says; where
    nobody says, they are 128, fp16 and True. `tp` gives the layers of one of that many devices; where a
    shard starts inside a group, its groups are the largest smaller ones that fit.

    Raises:
        ShapesError: a part of `text` means nothing, or `tp` does not fit the model.
        LayerError: the numbers of a layer do not fit together.
    """
    if tp < 1:
        raise ShapesError(f"tp={tp} is not a number of devices; use tp >= 1")
    asked = Quantization(group_size, dtype, zero_point)
    names: dict[Layer, list[str]] = {}
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if not parts:
        raise ShapesError(f"shapes {text!r} names no layer; give one of {', '.join(PRESETS)}, or n=...,k=...")
    for part in parts:
        for shape in _parse(part, asked, tp):
            known = names.setdefault(shape.layer, [])
            known += [name for name in shape.projections if name not in known]
    return [Shape(tuple(projections), layer) for layer, projections in names.items()]


def _parse(part: str, asked: Quantization, tp: int) -> list[Shape]:
    path = Path(part).expanduser()
    if part in PRESETS:
        return _decoder_shapes(part, PRESETS[part], asked, tp)
    if path.exists():
        decoder, stored = _read_config(path / "config.json" if path.is_dir() else path)
        return _decoder_shapes(part, decoder, asked.over(stored), tp)
    if re.match(r"\s*(n|k)\s*=", part):
        if tp != 1:
            raise ShapesError(f"tp={tp} needs a model; for {part!r} give n and k of one device's shard")
        return [_explicit(part, asked)]
    if "/" in part or part.endswith(".json"):
        raise ShapesError(f"shapes {part!r}: there is no such file or folder")
    near = difflib.get_close_matches(part.lower(), PRESETS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ShapesError(
        f"unknown shapes {part!r}: {hint}presets are {', '.join(PRESETS)}; "
        "or give a config.json, a model folder, or n=4096,k=4096,group_size=128"
    )


def _decoder_shapes(part: str, decoder: Decoder, quantization: Quantization, tp: int) -> list[Shape]:
    try:
        whole, shards = decoder.projections(1), decoder.projections(tp)
    except ShapesError as error:
        raise ShapesError(f"shapes {part!r}: {error}") from None
    return [
        Shape((name,), _sharded(part, name, quantization.layer(n, whole[name][1]), k))
        for name, (n, k) in shards.items()
    ]


def _sharded(part: str, name: str, layer: Layer, k: int) -> Layer:
    """The layer's shard along k, whose groups may have to be smaller."""
    try:
        return shard_layer(layer, 1, layer.k // k)
    except LayerError as error:
        raise ShapesError(f"shapes {part!r}: {name}: {error}; use a smaller tp") from None


def _split(name: str, value: int, tp: int) -> int:
    if value % tp:
        raise ShapesError(f"tp={tp} does not divide {name}={value}")
    return value // tp


def _explicit(part: str, asked: Quantization) -> Shape:
    fields: dict[str, str] = {}
    for field in part.split(","):
        name, equals, value = (piece.strip() for piece in field.partition("="))
        if not equals or name not in _EXPLICIT or name in fields:
            raise ShapesError(
                f"shapes {part!r}: {field.strip()!r} is not one of {', '.join(_EXPLICIT)}, each once"
            )
        fields[name] = value
    for name in ("n", "k"):
        if name not in fields:
            raise ShapesError(f"shapes {part!r} has no {name}=")
    numbers = {
        name: _integer(part, name, fields[name]) for name in ("n", "k", "group_size") if name in fields
    }
    zero_point = fields.get("zero_point")
    if zero_point is not None and zero_point.lower() not in _BOOLEANS:
        raise ShapesError(f"shapes {part!r}: zero_point={zero_point!r} is not true or false")
    said = Quantization(
        numbers.get("group_size"),
        fields.get("dtype"),
        None if zero_point is None else _BOOLEANS[zero_point.lower()],
    )
    return Shape((), said.over(asked).layer(numbers["n"], numbers["k"]))


def _integer(part: str, name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ShapesError(f"shapes {part!r}: {name}={value!r} is not a whole number") from None


def _read_config(path: Path) -> tuple[Decoder, Quantization]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShapesError(f"{path.parent} has no config.json") from None
    except (OSError, ValueError) as error:
        raise ShapesError(f"{path} does not read as a model's config.json: {error}") from None
    if not isinstance(document, dict):
        raise ShapesError(f"{path} does not read as a model's config.json: it is not an object")
    # Models that also see or hear keep the numbers of their language model one level down.
    model = document.get("text_config") or document
    heads = _field(path, model, "num_attention_heads")
    hidden = _field(path, model, "hidden_size")
    decoder = Decoder(
        hidden_size=hidden,
        intermediate_size=_field(path, model, "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=_field(path, model, "num_key_value_heads", heads),
        head_dim=_field(path, model, "head_dim", hidden // heads),
    )
    stored = document.get("quantization_config") or model.get("quantization_config") or {}
    dtype = str(model.get("dtype") or model.get("torch_dtype") or document.get("torch_dtype"))
    return decoder, replace(_quantization(path, stored), dtype=_DTYPES.get(dtype.removeprefix("torch.")))


def _field(path: Path, model: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = model.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        found = "is missing" if value is None else f"is {value!r}, not a positive number"
        raise ShapesError(f"{path}: {name} {found}; give the layers as n=...,k=...")
    return value


def _quantization(path: Path, stored: Any) -> Quantization:
    """Group size and zeros that a `quantization_config` gives its layers."""
    if not stored:
        return Quantization()
    try:
        scheme = parse_quantization(stored)
    except FormatError as error:
        raise ShapesError(f"{path}: {error}") from None
    return Quantization(scheme.group_size, None, scheme.zero_point)
