"""What vLLM's own classes need around them, and linears that they make of checkpoints' tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import packers
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers.linear import MergedColumnParallelLinear
from vllm.model_executor.layers.quantization import get_quantization_config

from autotune.layouts import QuantizedWeight, dequantize

K = 256
ROWS = (128, 64)
"""Of the two projections that a linear of the tests merges."""


@dataclass(frozen=True)
class Format:
    """A checkpoint format by vLLM's name, with what its config says."""

    names: tuple[str, ...]
    zero_point: bool
    desc_act: bool = False
    activations: dict[str, Any] | None = None

    def config(self, group_size: int) -> Any:
        """vLLM's config of the format, by whichever of its names this release has."""
        for name in self.names:
            with contextlib.suppress(ValueError):
                return get_quantization_config(name).from_config(self._described(group_size))
        raise ValueError(f"this vLLM has none of {self.names}")

    def _described(self, group_size: int) -> dict[str, Any]:
        if self.names[0] == "compressed-tensors":
            strategy = "channel" if group_size == -1 else "group"
            weights = {"num_bits": 4, "type": "int", "symmetric": not self.zero_point, "strategy": strategy}
            weights |= {} if group_size == -1 else {"group_size": group_size}
            weights |= {"actorder": "group"} if self.desc_act else {}
            group = {"targets": ["Linear"], "weights": weights, "input_activations": self.activations}
            groups = {"group_0": group}
            return {"quant_method": self.names[0], "format": "pack-quantized", "config_groups": groups}
        told = {"bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm"}
        told |= {"modules_in_block_to_quantize": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]}
        return {**told, "desc_act": self.desc_act, "sym": True, "quant_method": self.names[-1]}

    def pack(self, weight: QuantizedWeight, g_idx: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint."""
        if self.names[0] == "compressed-tensors":
            return packers.compressed_tensors(weight, g_idx)
        return packers.gptq(weight, g_idx) if "gptq" in self.names[0] else packers.awq_gemm(weight)


FORMATS = {
    "awq": Format(("auto_awq", "awq_marlin", "awq"), True),
    "gptq": Format(("auto_gptq", "gptq_marlin", "gptq"), False),
    "gptq-desc_act": Format(("auto_gptq", "gptq_marlin", "gptq"), False, desc_act=True),
    "compressed": Format(("compressed-tensors",), True),
    "compressed-symmetric": Format(("compressed-tensors",), False),
}


@contextlib.contextmanager
def engine_of_one(store: Path) -> Iterator[VllmConfig]:
    """As in a worker of an engine without shards; `store` is a file for torch.distributed."""
    config = VllmConfig()
    with set_current_vllm_config(config):
        if not parallel_state.model_parallel_is_initialized():
            parallel_state.init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
            parallel_state.initialize_model_parallel()
        yield config


def merged(
    form: Format, weights: Sequence[QuantizedWeight], g_idx: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.nn.Module:
    """A linear of vLLM that merges the projections; its parameters are loaded, but not yet processed."""
    layer = weights[0].layer
    sizes = [weight.layer.n for weight in weights]
    dtype = weights[0].scales.dtype
    config = form.config(-1 if layer.groups == 1 else layer.group_size)
    config.packed_modules_mapping = {"gate_up_proj": ["gate_proj", "up_proj"]}
    linear = MergedColumnParallelLinear(
        layer.k, sizes, bias is not None, params_dtype=dtype, quant_config=config, prefix="mlp.gate_up_proj"
    )
    load(linear, form, weights, g_idx)
    if bias is not None:
        linear.bias.data.copy_(bias)
    return linear


def load(
    linear: torch.nn.Module, form: Format, weights: Sequence[QuantizedWeight], g_idx: torch.Tensor | None
) -> None:
    """Load each projection's tensors as vLLM's models do."""
    parameters = dict(linear.named_parameters())
    for shard, weight in enumerate(weights):
        for name, found in form.pack(weight, g_idx).items():
            if name in parameters:
                parameters[name].weight_loader(parameters[name], found, shard)


def process(linear: torch.nn.Module) -> Any:
    """Have vLLM process the parameters; the kernel that it chose."""
    linear.quant_method.process_weights_after_loading(linear)
    return getattr(getattr(linear, "scheme", None), "kernel", None) or linear.quant_method.kernel


def reference(
    x: torch.Tensor,
    weights: Sequence[QuantizedWeight],
    g_idx: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """The product in fp32 from what the checkpoint means."""
    whole = torch.cat([dequantize(weight).float() for weight in weights])
    if g_idx is not None:
        columns = torch.empty_like(whole)
        columns[:, torch.sort(g_idx, stable=True).indices] = whole
        whole = columns
    out = x.float() @ whole.T
    return out if bias is None else out + bias.float()
