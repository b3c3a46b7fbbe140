"""A tiny Llama with random int4 weights, stored as a checkpoint: what the other examples load."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

GROUP_SIZE = 32
# Which of eight columns lies in each nibble of a 32-bit word, lowest bits first.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words(nibbles: torch.Tensor) -> torch.Tensor:
    """int32 [rows, columns / 8] of values 0 to 15 [rows, columns], as AutoAWQ packs them."""
    eights = nibbles.unflatten(-1, (-1, 8))[..., ORDER].long()
    packed = (eights << torch.arange(0, 32, 4)).sum(-1)
    return packed.to(torch.uint32).view(torch.int32)


def quantize(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The AWQ tensors of the int4 weight that is nearest to `weight` [n, k]."""
    n, k = weight.shape
    groups = weight.detach().view(n, k // GROUP_SIZE, GROUP_SIZE)
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    q = (groups / scales.float().unsqueeze(-1) + zeros.unsqueeze(-1)).round().clamp(0, 15)
    return {
        "qweight": words(q.view(n, k).T),  # [k, n / 8]
        "qzeros": words(zeros.T),  # [k / group_size, n / 8]
        "scales": scales.T.contiguous(),  # [k / group_size, n]
    }


def checkpoint(folder: Path) -> Path:
    """Write the checkpoint of a Llama with two blocks into the folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config)
    tensors = {name: value.bfloat16() for name, value in model.state_dict().items()}
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            del tensors[f"model.layers.{name}.weight"]
            for last, tensor in quantize(module.weight).items():
                tensors[f"model.layers.{name}.{last}"] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    awq = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": GROUP_SIZE,
        "zero_point": True,
    }
    described = {**config.to_dict(), "architectures": ["LlamaForCausalLM"], "quantization_config": awq}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    return folder
