"""quantization_config of real writers and of hostile ones: what is known is read, what is not is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoRoundConfig, AwqConfig, CompressedTensorsConfig, GPTQConfig

from autotune.checkpoints.quantization import CheckpointScheme, parse_quantization
from autotune.checkpoints.shapes import parse_shapes
from autotune.values.errors import FormatError, ShapesError

pytest.importorskip("compressed_tensors", reason="transformers' config of its checkpoints needs it")

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
ROTATION = {"type": "hadamard", "apply": [], "randomize": False, "requires_grad": False, "head_dim": None}


def compressed(weights: Any = WEIGHTS, group: Any = None, **fields: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, **(group or {})}}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    return {**config, **fields}


def rotated(*locations: str) -> dict[str, Any]:
    places = [{"targets": ["Linear"], "location": location, "inverse": False} for location in locations]
    return {"config_groups": {"R1": {**ROTATION, "apply": places}}}


SCHEMES = {
    "gptq": CheckpointScheme("gptq", 128, zero_point=False, minus_one=True),
    "by word": CheckpointScheme("gptq", 128, zero_point=False, minus_one=True, by_word=True),
    "v2": CheckpointScheme("gptq", 128, zero_point=False),
    "awq": CheckpointScheme("awq_gemm", 128),
    "compressed": CheckpointScheme("compressed_tensors", 128, zero_point=False),
}
# As the writers' own code makes them, with all their keys.
AUTOGPTQ = {
    "bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": False, "static_groups": False,
    "sym": True, "true_sequential": True, "is_marlin_format": False, "model_name_or_path": "m",
    "model_file_base_name": "model", "awq_gemm_checkpoint": False, "quant_method": "gptq",
}  # fmt: skip
GPTQMODEL = {
    "bits": 4,
    "dynamic": {
        "-:.*lm_head": {}, "-:.*embed": None, r"+:.*\.up_proj": {"bits": 4, "group_size": 128, "mse": 2.0},
    },
    "group_size": 128, "desc_act": False, "lm_head": True, "activation": None, "method": "gptq",
    "quant_method": "gptq", "format": "gptq", "checkpoint_format": "gptq", "pack_dtype": "int32",
    "rotation": None, "adapter": None, "sym": True, "hyb_act": True, "v2": True, "damp_auto_increment": 0.01,
    "meta": {
        "quantizer": ["gptqmodel:7.7.0"], "uri": "https://github.com", "damp_percent": 0.05, "mse": 0.0,
        "fallback": {"strategy": "rtn", "threshold": "0.5%", "smooth": None}, "act_group_aware": True,
    },
}  # fmt: skip
AUTO_ROUND_FILE = {
    "autoround_version": "0.16.1", "batch_size": 4, "bits": 4, "data_type": "int", "group_size": 128,
    "gradient_accumulate_steps": 2, "iters": 1000, "lr": 0.001, "low_gpu_mem_usage": True, "nsamples": 512,
    "packing_format": "auto_round:auto_gptq", "quant_method": "auto-round", "seqlen": 2048, "sym": True,
    "block_name_to_quantize": "model.layers", "enable_quanted_input": False, "amp": True,
    "act_bits": 16, "act_data_type": "float", "act_dynamic": True, "super_bits": None,
    "static_kv_dtype": None,
    "extra_config": {"lm_head": {"bits": 16, "data_type": "fp"}, "layers.0.up": {"bits": 4, "sym": True}},
}  # fmt: skip
LLM_COMPRESSOR = compressed(
    {
        **WEIGHTS, "actorder": "static", "block_structure": None, "dynamic": False, "observer": "mse",
        "observer_kwargs": {"maxshrink": 0.2}, "scale_dtype": None, "zp_dtype": "torch.int8",
    },
    {"input_activations": None, "output_activations": None, "format": "pack-quantized"},
    ignore=["lm_head"], kv_cache_scheme=None, global_compression_ratio=1.9, quantization_status="compressed",
    sparsity_config={}, transform_config=rotated("weight_input", "weight_output"), version="0.14.0",
    run_compressed=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "scheme"),
    [
        (AUTOGPTQ, "gptq"),
        (GPTQMODEL, "by word"),
        ({**GPTQMODEL, "format": "gptq_v2", "checkpoint_format": "gptq_v2"}, "v2"),
        (AUTO_ROUND_FILE, "by word"),
        ({**AUTO_ROUND_FILE, "packing_format": "auto_round:gptq:exllamav2"}, "by word"),
        ({**AUTO_ROUND_FILE, "packing_format": "auto_round:gptqmodel"}, "v2"),
        ({**AUTO_ROUND_FILE, "packing_format": "auto_round:exllamav2"}, "v2"),
        ({**AUTO_ROUND_FILE, "packing_format": "auto_round:auto_awq", "sym": False}, "awq"),
        (
            {**AUTO_ROUND, "quant_method": "intel/auto-round", "backend": "auto_round:gptq:exllamav2"},
            "by word",
        ),
        ({"wbits": 4, "groupsize": 128, "sym": True}, "gptq"),
        ({**GPTQ, "checkpoint_format": "gptq_v2", "quantizer": "someone:1.0"}, "v2"),
        (LLM_COMPRESSOR, "compressed"),
        (compressed({"num_bits": 4, "group_size": 128}), "compressed"),
        (GPTQConfig(bits=4, tokenizer="t", dataset="c4").to_dict(), "gptq"),
        (AwqConfig(bits=4, modules_to_not_convert=["lm_head"]).to_dict(), "awq"),
        ({**AwqConfig(bits=4).to_dict(), "do_fuse": True, "exllama_config": {"version": 2}}, "awq"),
        (AutoRoundConfig().to_dict(), "by word"),
        (
            json.loads(
                json.dumps(
                    CompressedTensorsConfig(
                        config_groups={"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
                        format="pack-quantized",
                        ignore=["lm_head"],
                    ).to_dict(),
                    default=str,
                )
            ),
            "compressed",
        ),
    ],
)
def test_what_real_writers_say_is_known(config: dict[str, Any], scheme: str) -> None:
    assert parse_quantization(config) == SCHEMES[scheme]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**GPTQ, "rotation": "hadamard"}, "quantization_config has rotation='hadamard', which may change"),
        ({**GPTQ, "activation": {"mode": "w4afp8"}}, "activation={'mode': 'w4afp8'}"),
        ({**GPTQ, "adapter": {"name": "lora"}}, "adapter={'name': 'lora'}"),
        ({**GPTQ, "awq_gemm_checkpoint": True}, "awq_gemm_checkpoint=True"),
        ({**GPTQ, "checkpoint_format": "marlin", "desc_act": True}, "desc_act=True"),
        ({**GPTQ, "group_size": 10**5000}, "group_size is 2^31 or more"),
        ({**GPTQ, "dynamic": {"+:.*up": {"bits": 8}}}, "quantization_config.dynamic.+:.*up has bits=8"),
        ({**GPTQ, "dynamic": {"up": {"group_size": 32}}}, "dynamic.up has group_size=32"),
        ({**GPTQ, "dynamic": {"up": {"sym": False}}}, "dynamic.up has sym=False"),
        ({**GPTQ, "dynamic": {"up": {"rotation": "random"}}}, "dynamic.up has rotation='random'"),
        ({**AWQ, "desc_act": True}, "quantization_config has desc_act=True"),
        ({**AWQ, "krot": 8}, "krot=8"),
        ({**AUTO_ROUND_FILE, "act_bits": 8}, "act_bits=8"),
        ({**AUTO_ROUND_FILE, "data_type": "mx_fp"}, "data_type='mx_fp'"),
        ({**AUTO_ROUND_FILE, "static_kv_dtype": "fp8"}, "static_kv_dtype='fp8'"),
        ({**AUTO_ROUND_FILE, "super_bits": 6}, "super_bits=6"),
        ({**AUTO_ROUND_FILE, "hadamard_config": {"block_size": 32}}, "hadamard_config={'block_size': 32}"),
        (
            {**AUTO_ROUND_FILE, "extra_config": {"a": {"bits": 8}}},
            "quantization_config.extra_config.a has bits=8",
        ),
        ({**AUTO_ROUND, "packing_format": "auto_round:fp8_static"}, "packing_format='auto_round:fp8_static'"),
        (AUTO_ROUND, "packing_format=None"),
        (compressed(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme={'num_bits': 8}"),
        (compressed(moe_sparsity_config={"a": 1}), "moe_sparsity_config={'a': 1}"),
        (compressed(transform_config=rotated("weight_input", "input")), "apply[1] has location='input'"),
        (compressed(transform_config=rotated("q_attn")), "R1.apply[0] has location='q_attn'"),
        (compressed(transform_config={"later": 1}), "quantization_config.transform_config has later=1"),
        (
            compressed(group={"input_activations": {"num_bits": 8}}),
            "group_0 has input_activations={'num_bits': 8}",
        ),
        (compressed(group={"output_activations": {"num_bits": 8}}), "group_0 has output_activations="),
        (compressed({**WEIGHTS, "dynamic": True}), "config_groups.group_0.weights has dynamic=True"),
        (compressed({**WEIGHTS, "block_structure": [128, 128]}), "weights has block_structure=[128, 128]"),
        *(
            ({**known, "later": "x"}, "quantization_config has later='x'")
            for known in (GPTQ, AWQ, compressed())
        ),
    ],
)
def test_what_may_change_the_result_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_quantization(config)
    assert words in str(caught.value)


@pytest.mark.parametrize("nothing", [None, False, 0, "", [], {}])
@pytest.mark.parametrize("config", [GPTQ, AWQ, compressed()])
def test_a_key_without_a_value_says_nothing(config: dict[str, Any], nothing: object) -> None:
    assert parse_quantization({**config, "rotation": nothing}) == parse_quantization(config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "quantization_config is None, which is not an object"),
        (["gptq"], "quantization_config is ['gptq'], which is not an object"),
        ("gptq", "quantization_config is 'gptq', which is not an object"),
        ({**GPTQ, "quant_method": ["gptq"]}, "quant_method=['gptq'], which is not text"),
        ({**GPTQ, "quant_method": 4}, "quant_method=4, which is not text"),
        ({**GPTQ, "checkpoint_format": {}}, "checkpoint_format={}, which is not text"),
        ({**GPTQ, "bits": [4]}, "bits=[4], which is not a whole number"),
        ({**GPTQ, "bits": True}, "bits=True, which is not a whole number"),
        ({**GPTQ, "bits": "4"}, "bits='4', which is not a whole number"),
        ({**GPTQ, "bits": None, "wbits": 4.0}, "wbits=4.0, which is not a whole number"),
        ({**GPTQ, "group_size": {"a": 128}}, "group_size={'a': 128}, which is not a whole number"),
        ({**GPTQ, "group_size": None}, "group_size=None, which is not a whole number"),
        ({**GPTQ, "sym": "true"}, "sym='true', which is not true or false"),
        ({**GPTQ, "desc_act": [1]}, "desc_act=[1], which is not true or false"),
        ({**GPTQ, "dynamic": ["up"]}, "quantization_config.dynamic is ['up'], which is not an object"),
        ({**GPTQ, "dynamic": {"up": 8}}, "quantization_config.dynamic.up is 8, which is not an object"),
        ({**AWQ, "zero_point": 1}, "zero_point=1, which is not true or false"),
        ({**AWQ, "version": 2}, "version=2, which is not text"),
        ({**AUTO_ROUND, "packing_format": ["a"]}, "packing_format=['a'], which is not text"),
        ({**AUTO_ROUND_FILE, "act_bits": "8"}, "act_bits='8', which is not a whole number"),
        (compressed(config_groups=[WEIGHTS]), "config_groups is [{"),
        (compressed(config_groups="Linear"), "config_groups is 'Linear', which is not an object"),
        (compressed(config_groups=None), "config_groups are missing or empty"),
        (compressed(config_groups={"W4A16": ["Linear"]}), "config_groups.W4A16 is ['Linear'], which is not"),
        (compressed(config_groups={"a": None}), "config_groups.a is None, which is not an object"),
        (compressed(None), "config_groups.group_0.weights is None, which is not an object"),
        (compressed("int4"), "config_groups.group_0.weights is 'int4', which is not an object"),
        (compressed({**WEIGHTS, "num_bits": "4"}), "weights has num_bits='4', which is not a whole number"),
        (compressed({**WEIGHTS, "group_size": [128]}), "weights has group_size=[128], which is not a whole"),
        (compressed({**WEIGHTS, "type": 4}), "weights has type=4, which is not text"),
        (
            compressed({**WEIGHTS, "symmetric": "no"}),
            "weights has symmetric='no', which is not true or false",
        ),
        (compressed(sparsity_config="dense"), "sparsity_config is 'dense', which is not an object"),
        (compressed(transform_config=["R1"]), "transform_config is ['R1'], which is not an object"),
        (
            compressed(transform_config={"config_groups": {"R1": {"apply": "x"}}}),
            "apply='x', which is not a list",
        ),
    ],
)
def test_values_of_a_wrong_type_are_one_clear_line(tmp_path: Path, config: Any, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_quantization(config)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    if config:
        with pytest.raises(ShapesError) as swept:
            parse_shapes(str(model(tmp_path, config)))
        assert str(caught.value) in str(swept.value)


def replaced(told: Any, value: object) -> Iterator[Any]:
    """The value in the place of `told`, and of everything in it."""
    yield value
    if isinstance(told, dict):
        for key, inner in told.items():
            yield from ({**told, key: other} for other in replaced(inner, value))
    elif isinstance(told, list):
        for i, inner in enumerate(told):
            yield from ([*told[:i], other, *told[i + 1 :]] for other in replaced(inner, value))


@pytest.mark.parametrize("value", [None, True, 0, -1, 2.5, 10**400, "", "x", [], ["x"], [{}], {}, {"x": {}}])
@pytest.mark.parametrize("config", [AUTOGPTQ, GPTQMODEL, AWQ, AUTO_ROUND_FILE, LLM_COMPRESSOR])
def test_any_value_anywhere_is_read_or_refused(config: dict[str, Any], value: object) -> None:
    refusals = []
    for changed in replaced(config, value):
        try:
            parse_quantization(changed)
        except FormatError as error:
            refusals.append(str(error))
    assert refusals
    assert [line for line in refusals if "\n" in line or len(line) > 600] == []


@pytest.mark.parametrize(
    "config",
    [
        {**GPTQ, "rotation": {str(i): "x" * 1000 for i in range(1000)}},
        {**GPTQ, "a\nb" * 1000: 1},
        {**GPTQ, "quant_method": "a\nb" * 1000},
        {**GPTQ, "checkpoint_format": "a\nb" * 1000},
        {**AWQ, "version": "a\nb" * 1000},
        {**AUTO_ROUND, "packing_format": "a\nb" * 1000},
        {**GPTQ, "dynamic": {"a\nb" * 1000: {"bits": "a\nb" * 1000}}},
        compressed({**WEIGHTS, "strategy": "a\nb" * 1000}),
        compressed(format="a\nb" * 1000),
        compressed(config_groups={"a\nb" * 1000: [{}]}),
    ],
)
def test_long_and_broken_text_becomes_one_short_line(config: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        parse_quantization(config)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def model(folder: Path, quantization: Any) -> Path:
    numbers = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8}
    described = {"model_type": "llama", **numbers, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "config",
    [
        compressed({"num_bits": 4, "group_size": 64}),
        compressed({**WEIGHTS, "group_size": 64, "symmetric": False}),
        {**GPTQ, "sym": None, "group_size": 64},
        {"wbits": 4, "groupsize": 64, "sym": True},
        {**AUTO_ROUND_FILE, "group_size": 64},
    ],
)
def test_a_sweep_takes_what_a_load_takes(tmp_path: Path, config: dict[str, Any]) -> None:
    scheme = parse_quantization(config)
    for shape in parse_shapes(str(model(tmp_path, config))):
        assert shape.layer.group_size == scheme.group_size == 64
        assert shape.layer.zero_point is (scheme.zero_point is not False)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            compressed(
                config_groups={"a": {"weights": WEIGHTS}, "b": {"weights": {**WEIGHTS, "group_size": 64}}}
            ),
            "2 config_groups differ in their weights",
        ),
        ({**GPTQ, "bits": None, "wbits": 3}, "bits=3; only 4-bit"),
        ({**GPTQ, "rotation": "hadamard"}, "rotation='hadamard'"),
    ],
)
def test_a_sweep_refuses_what_a_load_refuses(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        parse_quantization(config)
    with pytest.raises(ShapesError, match=f"config.json: .*{words}"):
        parse_shapes(str(model(tmp_path, config)))
