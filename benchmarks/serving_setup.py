"""What `serving.py` compares: shapes of models, and variants of vLLM that run them. Imports nothing heavy.

python benchmarks/serving_setup.py qwen3-32b FOLDER   writes what `autotune sweep --serving` reads
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

OURS = "AutotuneLinearKernel"
GROUP_SIZE = 128
SEQUENCE = 2048
MOST_SEQUENCES = 256
_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5}
_QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6}


@dataclass(frozen=True)
class Model:
    """A shape, as config.json has it, and a load that suits it.

    `chunk` is the most tokens of one step, `rates` are requests a second of the mixed load: about 30, 60
    and 90 % of what the slowest variant does on an H200.
    """

    config: dict[str, Any]
    chunk: int
    rates: tuple[float, ...]

    def with_config(self, **numbers: int | None) -> Model:
        """This model with other numbers in its config.json; None leaves one as it is."""
        given = {name: number for name, number in numbers.items() if number is not None}
        return replace(self, config=self.config | given)

    def write(self, folder: Path, quantized: bool) -> Path:
        """Write config.json, AWQ or dense, and return its folder; weights are made at load."""
        config = self.config | {"torch_dtype": "float16", "hidden_act": "silu", "tie_word_embeddings": False}
        if quantized:
            scheme = {"quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "zero_point": True}
            config["quantization_config"] = {**scheme, "version": "gemm"}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return folder


def _decoder(
    family: dict[str, Any], hidden: int, inner: int, layers: int, heads: tuple[int, int], vocabulary: int
) -> dict[str, Any]:
    return family | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "rope_theta": 1e6,
    }


MODELS = {
    "llama3-8b": Model(_decoder(_LLAMA, 4096, 14336, 32, (32, 8), 128256), 16384, (15, 30, 45)),
    # Its heads are wider than hidden_size / num_attention_heads.
    "qwen3-32b": Model(
        _decoder(_QWEN3, 5120, 25600, 64, (64, 8), 151936) | {"head_dim": 128}, 16384, (4, 8, 12)
    ),
    "tiny": Model(_decoder(_LLAMA, 256, 512, 2, (4, 4), 512), 2048, (4,)),
}


@dataclass(frozen=True)
class Variant:
    """One way to run a model: its environment, and the class that must run every int4 linear.

    `kernel` is None where that is any of vLLM's own, and where nothing is quantized.
    """

    environment: dict[str, str] = field(default_factory=dict)
    kernel: str | None = None
    quantized: bool = True

    def complaint(self, kernels: dict[str, int], linears: int) -> str | None:
        """What is wrong with the classes that run, counted by name, or None; `linears` is how many should."""
        wanted = f"{linears if self.quantized else 0} int4 linears by {self.kernel or 'vLLM'}"
        classes_right = set(kernels) == {self.kernel} if self.kernel else OURS not in kernels
        right = classes_right and sum(kernels.values()) == (linears if self.quantized else 0)
        return None if right else f"expected {wanted}, but these run: {kernels or 'none'}"


_OFF = {"AUTOTUNE_VLLM": "0"}
VARIANTS = {
    "tuned": Variant({"AUTOTUNE_VLLM": "1"}, OURS),
    "untuned": Variant({"AUTOTUNE_VLLM": "1"}, OURS),
    "machete": Variant(_OFF, "MacheteLinearKernel"),
    "marlin": Variant(_OFF | {"VLLM_DISABLED_KERNELS": "MacheteLinearKernel"}, "MarlinLinearKernel"),
    "vllm": Variant(_OFF),
    "fp16": Variant(_OFF, quantized=False),
}


@dataclass(frozen=True)
class Job:
    """What one process is to do; `stop_at` is the wall clock's time when it begins nothing more."""

    run: str
    turn: int
    variant: str
    cold: bool
    file: str
    folder: str
    chunk: int
    eager: bool
    batches: tuple[int, ...]
    prefill: tuple[int, ...]
    rates: tuple[float, ...]
    mixed_s: float
    steps: int
    stop_at: float
    asked_at: float


def main() -> None:
    """Write the quantized config.json of a model into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    MODELS[options.model].write(options.folder, quantized=True)


if __name__ == "__main__":
    main()
