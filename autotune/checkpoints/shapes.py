"""The layers of a model: from a preset's name, its folder, its config.json, or explicit numbers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.checkpoints.fusion import ARCHITECTURES, ENGINE_FUSED, FUSED, engine_fused, grouped
from autotune.checkpoints.quantization import CheckpointScheme, parse_quantization
from autotune.checkpoints.sharding import Heads, shard_along_k, shard_named, split
from autotune.checkpoints.stored_layers import quantization_of, stored_layers
from autotune.checkpoints.weights import has_weights, read_json
from autotune.values.errors import FormatError, LayerError, ShapesError
from autotune.values.layer import Layer
from autotune.values.scheme import Scheme

_DTYPES = {"float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32"}
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_OF_SCHEME = ("group_size", "dtype", "zero_point")
_EXPLICIT = ("n", "k", "scheme", *_OF_SCHEME)

_Words = Mapping[str, Any]
"""What somebody said of a scheme, in the words of `Layer`, which has defaults for the rest."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A layer and the projections of the model that have it; explicit numbers belong to none."""

    projections: tuple[str, ...]
    layer: Layer


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
        heads = Heads(self.num_attention_heads, self.num_key_value_heads).shard(tp)
        q, kv = heads.query * self.head_dim, heads.key_value * self.head_dim
        inner, hidden = split("intermediate_size", self.intermediate_size, tp), self.hidden_size
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


_DERIVED = ("num_key_value_heads", "head_dim")
DECODERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("cohere", "cohere2", "granite", "llama", "olmo", "olmo2", "olmo3"), _DERIVED),
    **dict.fromkeys(("exaone4", "mistral", "qwen2", "smollm3"), ("head_dim",)),
    **dict.fromkeys(("cwm", "gemma", "gemma2", "gemma3_text", "ministral3", "qwen3", "seed_oss"), ()),
}
"""The `model_type` of models whose blocks are Decoders, and what follows from the rest where config.json
leaves it out: as many key-value heads as heads, head_dim as hidden_size / heads."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The arguments of `parse_shapes`."""

    asked: _Words
    tp: int
    unfused: bool
    serving: bool

    def fused(self, model_type: str | None) -> Mapping[str, tuple[str, ...]]:
        """What is one linear in models of this type; None is a preset."""
        if self.serving:
            return engine_fused(str(model_type))
        return FUSED if model_type in (None, *ARCHITECTURES) and not self.unfused else {}


def parse_shapes(
    text: str | Path, tp: int = 1, unfused: bool = False, serving: bool = False, **asked: Any
) -> list[Shape]:
    """The distinct layers that `text` means, in the order in which it names them.

    `text` is one or several, separated by `;`, of: a preset; the folder of a 4-bit model, whose layers are
    those of its files, fused as `autotune.load` fuses them; the config.json of a plain decoder, which gives
    fused and unfused layers, as a preset does; `n=4096,k=4096` with `scheme=`, or `group_size=`, `dtype=` and
    `zero_point=`, if wanted. `asked` has these three too: they fill in what explicit numbers leave open, and
    override what a model says; where nobody says, they are 128, fp16 and True. `tp` gives the layers of one
    of that many devices; a shard that starts inside a group has the largest smaller groups that fit.
    `unfused` leaves out layers that are fused, for models whose linears stay apart. `serving` gives what vLLM
    runs of a model: fused layers in place of their parts in nearly all architectures, no experts, which are
    no linears there, and no shard that starts inside a group.

    Raises:
        ShapesError: a part of `text` means nothing, a file does not read, or `tp` does not fit the model.
        LayerError: the numbers of a layer do not fit together.
    """
    if tp < 1:
        raise ShapesError(f"tp={tp} is not a number of devices; use tp >= 1")
    wanted = _Wanted(_said(**asked), tp, unfused, serving)
    names: dict[Layer, list[str]] = {}
    parts = [part.strip() for part in str(text).split(";") if part.strip()]
    if not parts:
        raise ShapesError(f"shapes {text!r} names no layer; give one of {', '.join(PRESETS)}, or n=...,k=...")
    for part in parts:
        for shape in _parse(part, wanted):
            known = names.setdefault(shape.layer, [])
            known += [name for name in shape.projections if name not in known]
    return [Shape(tuple(projections), layer) for layer, projections in names.items()]


def _parse(part: str, wanted: _Wanted) -> list[Shape]:
    if part in PRESETS:
        return _decoder_shapes(part, PRESETS[part], wanted.asked, wanted, None)
    try:
        path = Path(part).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ShapesError(f"shapes {part!r} is no file or folder: {reason}") from None
    if exists:
        try:
            return _model_shapes(part, path, wanted)
        except FormatError as error:
            raise ShapesError(str(error)) from None
    if re.match(r"\s*(n|k)\s*=", part):
        if wanted.tp != 1:
            raise ShapesError(
                f"tp={wanted.tp} needs a model; for {part!r} give n and k of one device's shard"
            )
        return [Shape((), _explicit(part, wanted.asked))]
    if "/" in part or part.endswith(".json"):
        raise ShapesError(f"shapes {part!r}: there is no such file or folder")
    near = difflib.get_close_matches(part.lower(), PRESETS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ShapesError(
        f"unknown shapes {part!r}: {hint}presets are {', '.join(PRESETS)}; "
        "or give a config.json, a model folder, or n=4096,k=4096,group_size=128"
    )


def _model_shapes(part: str, path: Path, wanted: _Wanted) -> list[Shape]:
    """The layers of the files where a 4-bit model has some, else of its config.json."""
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise ShapesError(f"{path} has no config.json")
    document, told = read_json(file), quantization_of(file)
    asked = wanted.asked
    if told and file.name == "config.json" and has_weights(file.parent):
        dtype = asked.get("dtype") or _dtype(document)
        if wanted.serving and "dtype" not in asked and dtype == "fp32":
            dtype = "bf16"  # as vLLM does where nobody says otherwise
        found = stored_layers(file.parent, _scheme(file, told), dtype)
        layers = {name: Layer(each.n, each.k, each.scheme, **asked) for name, each in found.items()}
        return _stored_shapes(file, document, layers, wanted)
    decoder = _decoder(file, document)
    # A dense model in fp32 is quantized to compute in 16 bits.
    dtype = _dtype(document) if _dtype(document) != "fp32" else None
    words = {**_said(dtype=dtype), **_quantization(file, told), **asked}
    return _decoder_shapes(part, decoder, words, wanted, str(document.get("model_type")))


def _said(**words: Any) -> _Words:
    return {name: value for name, value in words.items() if value is not None}


def _stored_shapes(
    file: Path, document: Mapping[str, Any], layers: Mapping[str, Layer], wanted: _Wanted
) -> list[Shape]:
    """The layers that are named, for one of the devices, fused."""
    if wanted.serving:
        layers = {name: layer for name, layer in layers.items() if ".experts." not in name}
        if not layers:
            raise ShapesError(f"{file.parent}: all its int4 layers are experts, which --serving leaves out")
    if wanted.tp > 1:
        try:
            layers = shard_named(layers, _heads(file, document), wanted.tp, wanted.serving)
        except ShapesError as error:
            raise ShapesError(f"{file.parent}: {error}") from None
    wholes = wanted.fused(str(document.get("model_type")))
    return [
        Shape((name.rpartition(".")[2].removesuffix("_proj"),), layer)
        for name, layer, _ in grouped(layers, wholes, strict=wanted.serving)
    ]


def _heads(file: Path, document: Mapping[str, Any]) -> Heads:
    model = _text_model(document)
    heads = _field(file, model, "num_attention_heads")
    return Heads(heads, _field(file, model, "num_key_value_heads", heads))


def _decoder_shapes(
    part: str, decoder: Decoder, words: _Words, wanted: _Wanted, model_type: str | None
) -> list[Shape]:
    """Its layers; a `model_type` of None is a preset's."""
    try:
        whole, shards = decoder.projections(1), decoder.projections(wanted.tp)
    except ShapesError as error:
        raise ShapesError(f"shapes {part!r}: {error}") from None
    wholes = wanted.fused(model_type)
    left_out = {name for name in ENGINE_FUSED if name not in wholes}
    if wanted.serving:
        left_out |= {name for parts in wholes.values() for name in parts}
    return [
        Shape((name,), _sharded(part, name, Layer(n, whole[name][1], **words), k, wanted))
        for name, (n, k) in shards.items()
        if f"{name}_proj" not in left_out
    ]


def _sharded(part: str, name: str, layer: Layer, k: int, wanted: _Wanted) -> Layer:
    """The layer's shard along k."""
    try:
        return shard_along_k(layer, layer.k // k, wanted.serving)
    except LayerError as error:
        raise ShapesError(f"shapes {part!r}: {name}: {error}; use a smaller tp") from None
    except ShapesError as error:
        raise ShapesError(f"shapes {part!r}: {name}: {error}") from None


def _explicit(part: str, asked: _Words) -> Layer:
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
    n, k = numbers.pop("n"), numbers.pop("k")
    if "scheme" in fields:
        twice = [name for name in _OF_SCHEME if name in fields]
        if twice:
            raise ShapesError(f"shapes {part!r}: scheme= says {twice[0]} too; give one of them")
        return Layer(n, k, Scheme.parse(fields["scheme"]))
    zero_point = fields.get("zero_point")
    if zero_point is not None and zero_point.lower() not in _BOOLEANS:
        raise ShapesError(f"shapes {part!r}: zero_point={zero_point!r} is not true or false")
    zeros = None if zero_point is None else _BOOLEANS[zero_point.lower()]
    said = _said(**numbers, dtype=fields.get("dtype"), zero_point=zeros)
    return Layer(n, k, **{**asked, **said})


def _integer(part: str, name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ShapesError(f"shapes {part!r}: {name}={value!r} is not a whole number") from None


def _decoder(path: Path, document: Mapping[str, Any]) -> Decoder:
    model = _text_model(document)
    model_type = str(model.get("model_type"))
    if model_type not in DECODERS:
        raise ShapesError(
            f"{path}: the layers of model_type={model_type!r} cannot be told from its numbers;"
            " give the folder of the 4-bit model with its weights, or n=...,k=... of each layer"
        )
    heads, hidden = _field(path, model, "num_attention_heads"), _field(path, model, "hidden_size")
    derived = {"num_key_value_heads": heads, "head_dim": hidden // heads}
    for name, value in derived.items():
        derived[name] = _field(path, model, name, value if name in DECODERS[model_type] else None)
    return Decoder(hidden, _field(path, model, "intermediate_size"), heads, **derived)


def _text_model(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The numbers of the language model, which models that also see or hear keep one level down."""
    text = document.get("text_config")
    return text if isinstance(text, dict) and text else document


def _dtype(document: Mapping[str, Any]) -> str | None:
    """What the model computes in, where config.json says so, by the name of a layer's dtype."""
    both = (_text_model(document), document)
    told = [each[name] for each in both for name in ("dtype", "torch_dtype") if each.get(name)]
    return _DTYPES.get(str(told[0]).removeprefix("torch.")) if told else None


def _field(path: Path, model: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = model.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        found = "is missing" if value is None else f"is {value!r}, not a positive number"
        raise ShapesError(f"{path}: {name} {found}; give the layers as n=...,k=...")
    return value


def _quantization(path: Path, stored: Any) -> _Words:
    """Group size and zeros that a `quantization_config` gives its layers."""
    if not stored:
        return {}
    scheme = _scheme(path, stored)
    return _said(group_size=scheme.group_size, zero_point=scheme.zero_point)


def _scheme(path: Path, stored: Any) -> CheckpointScheme:
    try:
        return parse_quantization(stored)
    except FormatError as error:
        raise ShapesError(f"{path}: {error}") from None
