"""A Llama of random weights: its AWQ checkpoint, the same weights dequantised, and untuned configs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from autotune.checkpoints.weights import INDEX
from autotune.families import registry
from autotune.formats import awq_gemm
from autotune.layouts import dequantize, random_weight
from autotune.models.checkpoint import Checkpoint, open_folder
from autotune.records.lookup import Answer, Lookup
from autotune.values.device import Device, find_device
from autotune.values.layer import COARSE, Layer, Problem, buckets_for

GROUP_SIZE = 128
DTYPE = torch.float16
_NAMES = ("qweight", "qzeros", "scales")
_SIZES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "vocab_size": 512},
}
SIZES = tuple(_SIZES)


class Untuned(Lookup):
    """Answers as if nothing had ever been measured."""

    def answers(self, layer: Layer, tokens: Iterable[int] = COARSE) -> tuple[Answer, ...]:
        """The default configs."""
        coarse = {buckets_for(m)[-1] for m in tokens}
        return tuple(self.answer(Problem(layer, m)) for m in sorted(coarse))

    def answer(self, problem: Problem) -> Answer:
        """The default config."""
        problem = Problem(problem.layer, buckets_for(problem.m)[-1])
        config = registry.default_config(problem, self.device)
        return Answer(problem, self.device.name, config, "default", None, None, None, "no records")


def write(folder: Path, size: str, layers: int, device: Device) -> None:
    """An AWQ checkpoint as AutoAWQ writes it, made on the device, a file for each block."""
    config = LlamaConfig(num_hidden_layers=layers, max_position_embeddings=4096, dtype=DTYPE, **_SIZES[size])
    scheme = {"quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "zero_point": True}
    config.quantization_config = {**scheme, "version": "gemm"}
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    generator = torch.Generator(device.torch_name).manual_seed(0)
    files = {"rest.safetensors": _rest(config, generator)}
    names: dict[str, str] = {}
    for index in range(-1, layers):
        file = "rest.safetensors" if index < 0 else f"block-{index}.safetensors"
        tensors = files.pop(file) if index < 0 else _block(config, index, generator)
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / file)
        names |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))


def _rest(config: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    shape = (config.vocab_size, config.hidden_size)
    words, head = (torch.randn(shape, generator=generator, device=generator.device) for _ in range(2))
    return {
        "model.embed_tokens.weight": words.to(DTYPE),
        "model.norm.weight": _ones(config, generator),
        "lm_head.weight": (head * config.hidden_size**-0.5).to(DTYPE),
    }


def _block(config: Any, index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    hidden, inner = config.hidden_size, config.intermediate_size
    linears = dict.fromkeys((f"self_attn.{name}_proj" for name in "qkvo"), (hidden, hidden))
    linears |= {
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    prefix = f"model.layers.{index}"
    tensors = {
        f"{prefix}.{name}": _ones(config, generator)
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight")
    }
    for name, (n, k) in linears.items():
        stored = awq_gemm.from_quantized(random_weight(Layer(n, k, group_size=GROUP_SIZE), generator))
        tensors |= {f"{prefix}.{name}.{last}": each for last, each in zip(_NAMES, stored, strict=True)}
    return tensors


def _ones(config: Any, generator: torch.Generator) -> torch.Tensor:
    return torch.ones(config.hidden_size, dtype=DTYPE, device=generator.device)


def dense(folder: Path, device: str) -> Any:
    """transformers' own model of the checkpoint, each weight dequantised and rounded once."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    with torch.device(find_device(device).torch_name):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE).eval()
    checkpoint = open_folder(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_weight(checkpoint, name, parameter.device))
    return model


def _weight(checkpoint: Checkpoint, name: str, device: torch.device) -> torch.Tensor:
    if name in checkpoint.names:
        return checkpoint[name].to(device)
    linear = name.removesuffix(".weight")
    stored = (checkpoint[f"{linear}.{last}"].to(device) for last in _NAMES)
    return dequantize(awq_gemm.to_quantized(*stored))
