"""Folders of tiny 4-bit models as the formats store them, beside a model of the dequantized weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import packers
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from autotune.formats import awq_gemm
from autotune.layouts import QuantizedWeight, dequantize
from autotune.values.layer import Layer

GROUP = 32
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "eos_token_id": None,
}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """A way to store a linear, what config.json says of it, and numbers of a tiny model that it can store."""

    config: dict[str, Any]
    pack: Callable[[QuantizedWeight, torch.Tensor | None], Tensors]
    zero_point: bool = True
    desc_act: bool = False
    numbers: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads cost tiny models far more than they give, above all where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _compressed(symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": GROUP}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


_AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False}
_BLOCKS_OF_64 = {"intermediate_size": 128, "num_key_value_heads": 4}
KINDS = {
    "awq": Kind(_AWQ, lambda weight, _: packers.awq_gemm(weight)),
    "gptq": Kind(_GPTQ, lambda weight, _: packers.gptq(weight)),
    "gemv": Kind({**_AWQ, "version": "gemv"}, lambda weight, _: packers.awq_gemv(weight)),
    "gemv_fast": Kind(
        {**_AWQ, "version": "gemv_fast"},
        lambda weight, _: packers.awq_gemv_fast(weight, "qzeros"),
        numbers=_BLOCKS_OF_64,
    ),
    "gptq_v2": Kind({**_GPTQ, "checkpoint_format": "gptq_v2"}, partial(packers.gptq, minus_one=False)),
    "desc_act": Kind({**_GPTQ, "desc_act": True}, packers.gptq, desc_act=True),
    "marlin": Kind(
        {**_GPTQ, "checkpoint_format": "marlin", "sym": True},
        lambda weight, _: packers.marlin(weight),
        False,
        numbers=_BLOCKS_OF_64,
    ),
    "compressed": Kind(_compressed(False), lambda weight, _: packers.compressed_tensors(weight)),
    "symmetric": Kind(_compressed(True), lambda weight, _: packers.compressed_tensors(weight), False),
}
FAST_AWQ = Kind(
    _AWQ, lambda weight, _: dict(zip(awq_gemm.NAMES, awq_gemm.from_quantized(weight), strict=True))
)


def tiny(model_type: str = "llama", seed: int = 0, **numbers: Any) -> Any:
    """A model of random weights in fp32."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**SIZES, "dtype": "float32", **numbers})
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def rounded(weight: torch.Tensor, zero_point: bool) -> QuantizedWeight:
    """The nearest 4-bit weight, with fp16 scales as checkpoints have them."""
    layer = Layer(*weight.shape, group_size=GROUP, zero_point=zero_point)
    grouped = weight.detach().view(layer.n, layer.groups, GROUP)
    low, high = grouped.amin(-1), grouped.amax(-1)
    if not zero_point:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15) if zero_point else torch.full_like(low, 8)
    q = (grouped / scales.float().unsqueeze(-1) + zeros.unsqueeze(-1)).round().clamp(0, 15).byte()
    kept = zeros.byte().T.contiguous() if zero_point else None
    return QuantizedWeight(layer, q.view(layer.n, layer.k), scales.T.contiguous(), kept)


def linears_of(model: Any, skip: Iterable[str] = ("lm_head",)) -> dict[str, torch.nn.Linear]:
    """The model's linears, without those whose name ends with one of `skip`."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(tuple(skip))
    }


def quantize(
    model: Any, kind: Kind, skip: Iterable[str] = ("lm_head",), seed_of: Callable[[str], int] = lambda _: 0
) -> Tensors:
    """The tensors of the checkpoint; the model's own weights become what they mean.

    `seed_of` a linear's name is the seed of its columns' order, where the kind has one.
    """
    linears = linears_of(model, skip)
    tensors = {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if name.removesuffix(".weight") not in linears
    }
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    for name, linear in linears.items():
        g_idx = packers.shuffled_groups(linear.in_features, GROUP, seed_of(name)) if kind.desc_act else None
        order = torch.arange(linear.in_features) if g_idx is None else torch.sort(g_idx, stable=True).indices
        weight = rounded(linear.weight[:, order], kind.zero_point)
        linear.weight.data[:, order] = dequantize(weight)
        tensors |= {f"{name}.{last}": found for last, found in kind.pack(weight, g_idx).items()}
    return tensors


def scaled(reference: Any, act: str, behind: str) -> Tensors:
    """The checkpoint of a model whose activations were scaled; the model becomes its reference."""
    acts = [
        name for name, _ in reference.named_modules() if name.endswith(f"mlp.{act}") or ".ffn.act" in name
    ]
    assert len(acts) == 2
    scales: Tensors = {}
    for seed, name in enumerate(acts):
        linear = reference.get_submodule(f"{name.rpartition('.')[0]}.{behind}")
        generator = torch.Generator().manual_seed(seed)
        scales[name] = 0.25 + 2 * torch.rand(linear.in_features, generator=generator)
        linear.weight.data *= scales[name]
    tensors = quantize(reference, KINDS["awq"])
    for name, found in scales.items():
        reference.get_submodule(f"{name.rpartition('.')[0]}.{behind}").weight.data /= found
        tensors[f"{name}.scales"] = found
    return tensors


def with_a_short_group(reference: Any, kind: str) -> Tensors:
    """The checkpoint of a model whose down_proj lacks half of its last group; it becomes its reference."""
    chosen, missing = KINDS[kind], GROUP // 2
    tensors = quantize(reference, chosen, skip=("lm_head", "down_proj"))
    for name, linear in linears_of(reference).items():
        if name.endswith("down_proj"):
            k = linear.in_features
            g_idx = torch.arange(k + missing, dtype=torch.int32) // GROUP
            if chosen.desc_act:
                g_idx[:k] = g_idx[torch.randperm(k)]
            order = torch.sort(g_idx, stable=True).indices
            whole = torch.cat([linear.weight.data, torch.randn(linear.out_features, missing)], 1)
            weight = rounded(whole[:, order], chosen.zero_point)
            whole[:, order] = dequantize(weight)
            linear.weight.data = whole[:, :k].contiguous()
            del tensors[f"{name}.weight"]
            packed = _of_columns(chosen.pack(weight, g_idx), k, kind)
            tensors |= {f"{name}.{last}": found for last, found in packed.items()}
    return tensors


def _of_columns(packed: Tensors, k: int, kind: str) -> Tensors:
    """The tensors of a linear without the columns from k on."""
    if kind in ("compressed", "symmetric"):
        shape = torch.tensor([packed["weight_packed"].shape[0], k])
        return {**packed, "weight_packed": packed["weight_packed"][:, : k // 8], "weight_shape": shape}
    words = {"awq": (slice(k),), "gemv": (slice(None), slice(k // 8))}.get(kind, (slice(k // 8),))
    kept = {**packed, "qweight": packed["qweight"][words]}
    return {**kept, "g_idx": packed["g_idx"][:k]} if "g_idx" in packed else kept


def with_odd_head(reference: Any, kind: str) -> Tensors:
    """The checkpoint of the model, whose head has no multiple of 8 rows."""
    tensors, head, n = quantize(reference, KINDS[kind]), reference.lm_head, reference.lm_head.out_features
    rows = torch.cat([head.weight.data, torch.randn(-n % 8, head.in_features)])
    weight = rounded(rows, KINDS[kind].zero_point)
    head.weight.data = dequantize(weight)[:n].contiguous()
    packed = packers.compressed_tensors(weight)
    for last in ("weight_packed", "weight_scale"):
        packed[last] = packed[last][:n]
    packed["weight_shape"] = torch.tensor([n, head.in_features])
    del tensors["lm_head.weight"]
    return tensors | {f"lm_head.{last}": found for last, found in packed.items()}


def write(
    folder: Path,
    model: Any,
    tensors: Tensors,
    quantization: dict[str, Any] | None,
    shards: int = 1,
    **config: Any,
) -> Path:
    """The folder, with config.json and the tensors in one file or in shards with an index."""
    folder.mkdir(exist_ok=True, parents=True)
    described = {**model.config.to_dict(), "architectures": [type(model).__name__], **config}
    if quantization is not None:
        described["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    whole = {name: found.contiguous() for name, found in tensors.items()}
    if shards == 1:
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(whole)
    placed = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in set(placed.values()):
        held = {name: whole[name] for name in names if placed[name] == file}
        save_file(held, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def stored(folder: Path, model: Any, kind: str = "awq", **options: Any) -> Path:
    """The folder of the model in a kind; the model becomes its reference."""
    chosen = KINDS[kind]
    return write(folder, model, quantize(model, chosen), chosen.config, **options)


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


def prompt(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.arange(rows * length).view(rows, length) * 7 % SIZES["vocab_size"]


def greedy(model: Any, tokens: torch.Tensor, count: int = 8) -> list[int]:
    """The tokens that the model goes on with, by its own generate."""
    mask = torch.ones_like(tokens)
    made = model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return made[:, tokens.shape[1] :].tolist()
