from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.checkpoints.shapes import PRESETS, Shape, parse_shapes
from autotune.values.errors import AutotuneError, LayerError, ShapesError
from autotune.values.layer import Layer, shard_layer

LLAMA7B = {
    "qkv": (12288, 4096),
    "o": (4096, 4096),
    "gate_up": (22016, 4096),
    "gate": (11008, 4096),
    "down": (4096, 11008),
}
# Weights of all linears of one block, as published: parameters without embeddings, norms and lm_head.
BLOCK_WEIGHTS = {
    "llama7b": 4 * 4096**2 + 3 * 4096 * 11008,
    "llama13b": 4 * 5120**2 + 3 * 5120 * 13824,
    "llama70b": 2 * 8192**2 + 2 * 1024 * 8192 + 3 * 8192 * 28672,
    "llama3-8b": 2 * 4096**2 + 2 * 1024 * 4096 + 3 * 4096 * 14336,
    "llama3-70b": 2 * 8192**2 + 2 * 1024 * 8192 + 3 * 8192 * 28672,
    "mistral-7b": 2 * 4096**2 + 2 * 1024 * 4096 + 3 * 4096 * 14336,
    "qwen2.5-7b": 2 * 3584**2 + 2 * 512 * 3584 + 3 * 3584 * 18944,
    "qwen2.5-32b": 2 * 5120**2 + 2 * 1024 * 5120 + 3 * 5120 * 27648,
}


def by_projection(shapes: list[Shape]) -> dict[str, tuple[int, int]]:
    return {name: (shape.layer.n, shape.layer.k) for shape in shapes for name in shape.projections}


def model_folder(folder: Path, **config: Any) -> str:
    small = {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
    }
    (folder / "config.json").write_text(json.dumps(small | config))
    return str(folder)


def test_llama7b_has_five_layers() -> None:
    shapes = parse_shapes("llama7b")
    assert [(shape.layer.n, shape.layer.k) for shape in shapes] == list(LLAMA7B.values())
    assert shapes[1].projections == ("q", "k", "v", "o")
    assert {shape.layer.group_size for shape in shapes} == {128}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "projections", [("qkv", "o", "gate_up", "down"), ("q", "k", "v", "o", "gate", "up", "down")]
)
def test_presets_have_every_weight_fused_or_not(preset: str, projections: tuple[str, ...]) -> None:
    found = by_projection(parse_shapes(preset))
    assert sum(found[name][0] * found[name][1] for name in projections) == BLOCK_WEIGHTS[preset]


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_shards_of_one_projection_make_the_whole(tp: int) -> None:
    whole, shard = by_projection(parse_shapes("llama70b")), by_projection(parse_shapes("llama70b", tp=tp))
    for name, (n, k) in whole.items():
        split_along_k = name in ("o", "down")
        assert shard[name] == ((n, k // tp) if split_along_k else (n // tp, k))


def test_key_value_heads_are_repeated_where_there_are_fewer_than_devices() -> None:
    shard = by_projection(parse_shapes("llama3-8b", tp=16, group_size=64))
    assert shard["k"] == shard["v"] == (128, 4096)
    assert shard["qkv"] == (2 * 128 + 2 * 128, 4096)


@pytest.mark.parametrize(
    ("tp", "words"),
    [
        (3, ["tp=3", "num_attention_heads=32"]),
        (32, ["down", "k=11008", "32 shards of 344", "smaller tp"]),
        (64, ["tp=64", "num_attention_heads=32"]),
        (0, ["tp=0"]),
    ],
)
def test_tp_that_does_not_fit_names_the_numbers(tp: int, words: list[str]) -> None:
    with pytest.raises(ShapesError) as caught:
        parse_shapes("llama7b", tp=tp)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("tp", "group_size"), [(1, 128), (2, 128), (4, 64), (8, 32)])
def test_shards_that_start_inside_a_group_have_smaller_groups(tp: int, group_size: int) -> None:
    layers = {name: shape.layer for shape in parse_shapes("llama7b", tp=tp) for name in shape.projections}
    assert layers["down"] == Layer(4096, 11008 // tp, group_size=group_size)
    assert layers["down"] == shard_layer(Layer(4096, 11008), 1, tp)
    assert layers["gate"] == Layer(11008 // tp, 4096)
    assert layers["o"] == Layer(4096, 4096 // tp)


def test_explicit_numbers_and_what_fills_them_in() -> None:
    text = (
        "n=4096,k=4096 ; n = 512 , k=256, group_size=64, dtype=bf16, zero_point=false;"
        "n=512,k=256,scheme=int4-channel-sym-bf16;n=64,k=72,group_size=-1"
    )
    layers = [shape.layer for shape in parse_shapes(text, group_size=32, dtype="fp32", zero_point=True)]
    assert layers == [
        Layer(4096, 4096, group_size=32, dtype="fp32", zero_point=True),
        Layer(512, 256, group_size=64, dtype="bf16", zero_point=False),
        Layer(512, 256, group_size=-1, dtype="bf16", zero_point=False),
        Layer(64, 72, group_size=72, dtype="fp32", zero_point=True),
    ]


def test_layers_named_twice_are_tuned_once() -> None:
    shapes = parse_shapes("mistral-7b;llama3-8b;n=4096,k=4096")
    assert shapes == parse_shapes("llama3-8b")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({}, (128, "fp16", True)),
        ({"torch_dtype": "bfloat16"}, (128, "bf16", True)),
        ({"dtype": "torch.float16"}, (128, "fp16", True)),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}},
         (64, "fp16", True)),
        ({"quantization_config": {"w_bit": 4, "q_group_size": 32, "zero_point": False}}, (32, "fp16", False)),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}},
         (32, "fp16", False)),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False}},
         (128, "fp16", True)),
        ({"quantization_config": {"format": "pack-quantized", "config_groups": {"group_0": {"weights": {
            "num_bits": 4, "group_size": 64}}}}}, (64, "fp16", False)),
    ],
)  # fmt: skip
def test_config_json_says_how_the_model_is_quantized(
    tmp_path: Path, stored: dict[str, Any], expected: tuple[int, str, bool]
) -> None:
    folder = model_folder(tmp_path, **stored)
    assert parse_shapes(folder) == parse_shapes(str(tmp_path / "config.json"))
    for shape in parse_shapes(folder):
        assert (shape.layer.group_size, shape.layer.dtype, shape.layer.zero_point) == expected
    overridden = parse_shapes(folder, group_size=32, dtype="bf16", zero_point=False)[0].layer
    assert (overridden.group_size, overridden.dtype, overridden.zero_point) == (32, "bf16", False)


def test_a_dtype_beside_the_text_config(tmp_path: Path) -> None:
    text = {**json.loads(Path(model_folder(tmp_path), "config.json").read_text()), "torch_dtype": None}
    for told, expected in (
        ({"dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": "float16"}, "fp16"),
        ({}, "fp16"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"text_config": text, **told}))
        assert {shape.layer.dtype for shape in parse_shapes(tmp_path)} == {expected}
    (tmp_path / "config.json").write_text(
        json.dumps({"text_config": {**text, "dtype": "bfloat16"}, "dtype": "float16"})
    )
    assert parse_shapes(tmp_path)[0].layer.dtype == "bf16"


@pytest.mark.parametrize("source", ["llama7b", "config.json"])
def test_unfused_layers_only(tmp_path: Path, source: str) -> None:
    text = source if source == "llama7b" else model_folder(tmp_path)
    both, apart = by_projection(parse_shapes(text)), by_projection(parse_shapes(text, unfused=True))
    assert set(both) - set(apart) == {"qkv", "gate_up"}
    assert apart == {name: both[name] for name in apart}


def test_what_load_does_not_fuse_has_no_fused_layers(tmp_path: Path) -> None:
    found = parse_shapes(model_folder(tmp_path, model_type="gemma", num_key_value_heads=2, head_dim=64))
    assert set(by_projection(found)) == {"q", "k", "v", "o", "gate", "up", "down"}


def test_config_json_with_one_group_of_all_k(tmp_path: Path) -> None:
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True}
    for shape in parse_shapes(model_folder(tmp_path, quantization_config=quantization), tp=2):
        assert shape.layer.group_size == shape.layer.k


def test_config_json_heads(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, num_key_value_heads=2, head_dim=128)
    found = by_projection(parse_shapes(folder))
    assert found["q"] == (8 * 128, 512)
    assert found["k"] == (2 * 128, 512)
    assert found["o"] == (512, 8 * 128)
    nested = tmp_path / "nested"
    nested.mkdir()
    text_config = json.loads((tmp_path / "config.json").read_text())
    (nested / "config.json").write_text(json.dumps({"text_config": text_config}))
    # load makes nothing of a model that also sees, so nothing is fused.
    assert parse_shapes(str(nested)) == parse_shapes(folder, unfused=True)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"model_type": "qwen3", "num_key_value_heads": 2}, "head_dim is missing"),
        ({"model_type": "mistral"}, "num_key_value_heads is missing"),
        ({"model_type": "deepseek_v2"}, "layers of model_type='deepseek_v2' cannot be told from its numbers"),
        ({"model_type": ["llama"]}, "cannot be told from its numbers; give the folder"),
        ({"model_type": None}, "cannot be told from its numbers; give the folder"),
        ({"intermediate_size": "big"}, "intermediate_size is 'big'"),
        (
            {"quantization_config": {"w_bit": 8, "q_group_size": 128, "zero_point": True}},
            "bits=8; only 4-bit",
        ),
    ],
)
def test_config_json_that_cannot_be_used(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(ShapesError, match=words):
        parse_shapes(model_folder(tmp_path, **config))


def test_a_folder_without_config_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ShapesError, match=r"has no config\.json"):
        parse_shapes(str(tmp_path))
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ShapesError, match="does not read as"):
        parse_shapes(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("lama7b", ShapesError, "did you mean llama7b"),
        ("llama8b", ShapesError, "did you mean llama3-8b"),
        ("Qwen2.5-7B", ShapesError, "did you mean qwen2.5-7b"),
        ("zzz", ShapesError, "presets are llama7b"),
        ("no/such/config.json", ShapesError, "no such file"),
        ("", ShapesError, "names no layer"),
        ("no\0thing", ShapesError, "shapes 'no\\x00thing'"),
        ("~nobody-knows/model", ShapesError, "no file or folder: "),
        ("x" * 5000, ShapesError, "no file or folder: File name too long"),
        ("n=64", ShapesError, "has no k="),
        ("n=64,k=many", ShapesError, "k='many'"),
        ("n=64,k=64,k=64", ShapesError, "each once"),
        ("n=64,k=64,bits=4", ShapesError, "'bits=4'"),
        ("n=64,k=128,zero_point=maybe", ShapesError, "zero_point='maybe'"),
        ("n=60,k=128", LayerError, "n=60"),
        ("n=64,k=-128", LayerError, "k=-128"),
        ("n=64,k=100,group_size=100", LayerError, "k=100"),
        ("n=64,k=4096,group_size=96", LayerError, "group_size=96"),
        ("n=64,k=96", LayerError, "group_size=128"),
        ("n=64,k=128,dtype=int8", LayerError, "'int8'"),
        ("n=64,k=128,scheme=int4", LayerError, "scheme 'int4' does not read as int4-g128-zp-fp16"),
        ("n=64,k=128,scheme=int4-g64-zp-fp16,dtype=bf16", ShapesError, "scheme= says dtype too"),
    ],
)
def test_bad_text_names_the_value(text: str, error: type[AutotuneError], words: str) -> None:
    with pytest.raises(error) as caught:
        parse_shapes(text)
    assert words in str(caught.value)


def test_explicit_numbers_are_a_shard_already() -> None:
    with pytest.raises(ShapesError, match="tp=2 needs a model"):
        parse_shapes("n=4096,k=4096", tp=2)
