"""From the quantization_config of every writer to the scheme, and errors that have the value."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.formats import TensorScheme, detect
from autotune.values.errors import FormatError

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}


def compressed(*weights: dict[str, Any], **fields: Any) -> dict[str, Any]:
    groups = {f"group_{i}": {"targets": ["Linear"], "weights": one} for i, one in enumerate(weights)}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    return {**config, **fields}


@pytest.mark.parametrize(
    ("config", "scheme"),
    [
        ({**AWQ, "modules_to_not_convert": None}, TensorScheme("awq_gemm", 128)),
        ({**AWQ, "version": "GEMM"}, TensorScheme("awq_gemm", 128)),
        ({**AWQ, "version": "gemv", "group_size": 64}, TensorScheme("awq_gemv", 64)),
        ({**AWQ, "version": "gemv_fast"}, TensorScheme("awq_gemv_fast", 128)),
        ({"quant_method": "awq", "format": "llm-awq", "w_bit": 4, "q_group_size": 128, "zero_point": True},
         TensorScheme("awq_gemv_fast", 128)),
        ({"w_bit": 4, "q_group_size": 32, "zero_point": True}, TensorScheme("awq_gemm", 32)),
        ({**AWQ, "version": "marlin", "zero_point": False}, TensorScheme("marlin", 128, zero_point=False)),
        ({**AWQ, "zero_point": None, "sym": True}, TensorScheme("awq_gemm", 128, zero_point=False)),
        (GPTQ, TensorScheme("gptq", 128, zero_point=False, minus_one=True)),
        ({**GPTQ, "checkpoint_format": "gptq", "sym": False, "desc_act": True},
         TensorScheme("gptq", 128, desc_act=True, minus_one=True)),
        ({**GPTQ, "checkpoint_format": "gptq_v2", "group_size": -1},
         TensorScheme("gptq", -1, zero_point=False)),
        ({**GPTQ, "quant_method": None, "method": "gptq", "format": "gptq_v2", "sym": False},
         TensorScheme("gptq", 128)),
        ({"bits": 4, "group_size": 64, "desc_act": True, "sym": True},
         TensorScheme("gptq", 64, zero_point=False, desc_act=True, minus_one=True)),
        ({**GPTQ, "sym": None}, TensorScheme("gptq", 128, zero_point=None, minus_one=True)),
        ({**GPTQ, "checkpoint_format": "marlin"}, TensorScheme("marlin", 128, zero_point=False)),
        ({**GPTQ, "is_marlin_format": True}, TensorScheme("marlin", 128, zero_point=False)),
        (compressed({**WEIGHTS, "actorder": None}),
         TensorScheme("compressed_tensors", 128, zero_point=False)),
        (compressed({**WEIGHTS, "symmetric": False}), TensorScheme("compressed_tensors", 128)),
        (compressed({**WEIGHTS, "strategy": "channel", "group_size": None}),
         TensorScheme("compressed_tensors", -1, zero_point=False)),
        (compressed(WEIGHTS, WEIGHTS, sparsity_config={"format": "dense"}),
         TensorScheme("compressed_tensors", 128, zero_point=False)),
    ],
)  # fmt: skip
def test_every_spelling_is_understood(config: dict[str, Any], scheme: TensorScheme) -> None:
    assert detect(config) == scheme


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**AWQ, "bits": 3}, "bits=3; only 4-bit"),
        ({**GPTQ, "bits": 8}, "bits=8; only 4-bit"),
        (compressed({**WEIGHTS, "num_bits": 8}), "bits=8; only 4-bit"),
        ({"quant_method": "mxfp4"}, "quant_method='mxfp4' is not one of awq, gptq, compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method='bitsandbytes'"),
        ({}, "quant_method=None"),
        ({**AWQ, "version": "paro"}, "AWQ version='paro' is not one of gemm"),
        ({**GPTQ, "checkpoint_format": "bitblas"}, "checkpoint_format='bitblas' is not one of gptq"),
        ({**AWQ, "group_size": None}, "group_size=None, which is not a whole number"),
        ({**GPTQ, "bits": "4"}, "bits='4', which is not a whole number"),
        (
            compressed(WEIGHTS, format="int-quantized"),
            "format='int-quantized', which is not 'pack-quantized'",
        ),
        (compressed({**WEIGHTS, "type": "float"}), "group_0.weights has type='float'"),
        (compressed({**WEIGHTS, "strategy": "tensor"}), "group_0.weights has strategy='tensor'"),
        (compressed(WEIGHTS, {**WEIGHTS, "group_size": 64}), "2 config_groups differ"),
        (compressed(), "config_groups are missing or empty"),
        (compressed(WEIGHTS, sparsity_config={"format": "sparse-24-bitmask"}), "'sparse-24-bitmask'"),
        (
            compressed(config_groups={"a": {"weights": WEIGHTS, "input_activations": {"num_bits": 8}}}),
            "config_groups.a has input_activations={'num_bits': 8}",
        ),
        (
            compressed(config_groups={"a": {"weights": WEIGHTS, "format": "nvfp4-pack-quantized"}}),
            "a has format='nvfp4-pack-quantized'",
        ),
    ],
)
def test_what_is_not_read_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError) as caught:
        detect(config)
    assert words in str(caught.value)
