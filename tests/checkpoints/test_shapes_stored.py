"""The layers of a folder with weights, against what autotune.load makes of it."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import KINDS, one_thread, quantize, stored, tiny, write
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import autotune
from autotune.checkpoints.fusion import ARCHITECTURES
from autotune.checkpoints.shapes import DECODERS, parse_shapes
from autotune.checkpoints.weights import read_headers
from autotune.values.errors import LayerError, ShapesError
from autotune.values.layer import Layer

pytestmark = [
    pytest.mark.usefixtures(one_thread.__name__),
    pytest.mark.filterwarnings("ignore:no config was measured"),
]


def layers_of(folder: Path | str, **options: Any) -> set[Layer]:
    return {shape.layer for shape in parse_shapes(folder, **options)}


def loaded(folder: Path, **options: Any) -> set[Layer]:
    return {report.layer for report in autotune.load(folder, "cpu", **options).autotune_report.layers}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fuse", [True, False])
def test_every_format(tmp_path: Path, kind: str, fuse: bool) -> None:
    folder = stored(tmp_path / "model", tiny(**KINDS[kind].numbers), kind, shards=2)
    assert layers_of(folder, unfused=not fuse) == loaded(folder, fuse=fuse)


@pytest.mark.parametrize("family", ["qwen2", "gemma", "starcoder2", "qwen3_5_text"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_family(tmp_path: Path, family: str, dtype: str) -> None:
    types = {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 8}
    model = tiny(family, **(types if family == "qwen3_5_text" else {}))
    folder = stored(tmp_path / "model", model, dtype=dtype)
    assert layers_of(folder) == loaded(folder)
    assert layers_of(folder / "config.json") == loaded(folder)


@pytest.mark.parametrize("where", ["top", "text", "both"])
def test_a_model_that_also_sees(tmp_path: Path, where: str) -> None:
    """Its language model's numbers are one level down; the dtype is there or at the top."""
    model = tiny("qwen3_5_text", layer_types=["linear_attention", "full_attention"], linear_num_value_heads=8)
    folder = write(tmp_path / "model", model, quantize(model, KINDS["awq"]), None)
    text = {
        **json.loads((folder / "config.json").read_text()),
        "dtype": None if where == "top" else "bfloat16",
    }
    told = {"model_type": "qwen3_5", "text_config": text, "quantization_config": KINDS["awq"].config}
    if where != "text":
        told["dtype"] = "bfloat16" if where == "top" else "float16"
    (folder / "config.json").write_text(json.dumps(told))
    assert {layer.dtype for layer in layers_of(folder)} == {"bf16"}
    assert layers_of(folder) == loaded(folder)


def test_parts_that_the_language_model_does_not_have_are_no_layers(tmp_path: Path) -> None:
    model = tiny("qwen3_5_text", layer_types=["linear_attention", "full_attention"], linear_num_value_heads=8)
    tensors = quantize(model, KINDS["awq"])
    first = next(name for name in tensors if name.endswith("up_proj.qweight")).removesuffix("qweight")
    for other in ("mtp.fc.", "model.visual.merger.linear_fc1."):
        # Four times as many columns, so that no other layer is alike.
        for last in ("qweight", "qzeros", "scales"):
            tensors[other + last] = tensors[first + last].repeat(1, 4)
    folder = write(tmp_path / "model", model, tensors, KINDS["awq"].config)
    assert layers_of(folder) == loaded(folder)


def test_the_dtype_of_the_weights_where_nobody_says_it(tmp_path: Path) -> None:
    model = tiny()
    halves = {
        name: found.bfloat16() if found.is_floating_point() else found
        for name, found in quantize(model, KINDS["awq"]).items()
    }
    folder = write(tmp_path / "model", model, halves, KINDS["awq"].config, dtype=None)
    assert {layer.dtype for layer in layers_of(folder)} == {"bf16"}
    assert layers_of(folder) == loaded(folder)


def test_names_of_projections_and_what_is_asked_for(tmp_path: Path) -> None:
    folder = stored(tmp_path / "model", tiny())
    shapes = parse_shapes(folder, dtype="bf16", zero_point=False)
    names = {name: shape.layer for shape in shapes for name in shape.projections}
    assert set(names) == {"qkv", "o", "gate_up", "down"}
    assert names["qkv"] == Layer(64 + 2 * 32, 64, group_size=32, dtype="bf16", zero_point=False)


def test_a_part_that_is_not_quantized_is_no_layer(tmp_path: Path) -> None:
    model, skip = tiny(), ("lm_head", "gate_proj", "up_proj")
    folder = write(tmp_path / "model", model, quantize(model, KINDS["gptq"], skip), KINDS["gptq"].config)
    names = {name for shape in parse_shapes(folder) for name in shape.projections}
    assert names == {"qkv", "o", "down"}
    assert layers_of(folder) == loaded(folder)


def test_experts_are_layers_of_their_own(tmp_path: Path) -> None:
    """The numbers of an expert are not those that a decoder would have."""
    tensors = {}
    for expert in range(2):
        for name, n, k in (("gate_proj", 32, 64), ("up_proj", 32, 64), ("down_proj", 64, 32)):
            prefix = f"model.layers.0.mlp.experts.{expert}.{name}"
            tensors[f"{prefix}.weight_packed"] = torch.zeros((n, k // 8), dtype=torch.int32)
    model = tiny("qwen3_moe")
    folder = write(tmp_path / "model", model, tensors, KINDS["symmetric"].config, dtype="bfloat16")
    assert layers_of(folder) == {
        Layer(32, 64, group_size=32, dtype="bf16", zero_point=False),
        Layer(64, 32, group_size=32, dtype="bf16", zero_point=False),
    }


def test_what_no_kernel_takes_is_left_out(tmp_path: Path) -> None:
    """A single row, and groups that do not divide k."""
    tensors = {
        "a.gate.weight_packed": torch.zeros((1, 8), dtype=torch.int32),
        "a.down.weight_packed": torch.zeros((8, 6), dtype=torch.int32),
    }
    folder = write(tmp_path / "model", tiny(), tensors, KINDS["symmetric"].config, dtype="float16")
    with pytest.raises(LayerError, match=r"a.(gate: n=1 is not|down: k=48 is not) a .*multiple of"):
        parse_shapes(folder)
    tensors["a.up.weight_packed"] = torch.zeros((8, 8), dtype=torch.int32)
    write(folder, tiny(), tensors, KINDS["symmetric"].config, dtype="float16")
    assert layers_of(folder) == {Layer(8, 64, group_size=32, zero_point=False)}


def test_shards_for_several_devices(tmp_path: Path) -> None:
    """Those of its files, by their projections' names; config.json alone tells of plain decoders only."""
    model = tiny(head_dim=32, intermediate_size=192)
    folder = stored(tmp_path / "model", model, dtype="float16")
    assert layers_of(folder, tp=2) == {
        *(Layer(n, 64, group_size=32) for n in (64 + 2 * 32, 2 * 96)),  # qkv with two of four heads, gate_up
        *(Layer(64, k, group_size=32) for k in (64, 96)),  # o, down
    }
    assert layers_of(folder, tp=2, unfused=True) == {
        *(Layer(n, 64, group_size=32) for n in (64, 32, 96)),
        *(Layer(64, k, group_size=32) for k in (64, 96)),
    }
    other = stored(tmp_path / "other", tiny("starcoder2", hidden_size=128, intermediate_size=192))
    assert Layer(128, 96, group_size=32, dtype="fp32") in layers_of(other, tp=2)
    (other / "model.safetensors").unlink()
    with pytest.raises(ShapesError, match="layers of model_type='starcoder2' cannot be told"):
        parse_shapes(other, tp=2)


def test_shards_of_stored_layers_that_start_inside_a_group_have_smaller_groups(tmp_path: Path) -> None:
    tensors = {"a.down_proj.weight_packed": torch.zeros((8, 48), dtype=torch.int32)}
    folder = write(tmp_path / "model", tiny(), tensors, of_128(), dtype="float16")
    assert layers_of(folder, tp=2) == {Layer(8, 192, group_size=64, zero_point=False)}
    with pytest.raises(ShapesError, match=r"a.down_proj .*tp=2 makes a shard of k=192 that starts inside"):
        parse_shapes(folder, tp=2, serving=True)


def of_128() -> dict[str, Any]:
    config = copy.deepcopy(KINDS["symmetric"].config)
    config["config_groups"]["group_0"]["weights"]["group_size"] = 128
    return config


@pytest.mark.parametrize(
    ("name", "shape", "tp", "words"),
    [
        ("a.mixer", (64, 8), 2, "how mixer is split with tp=2 is not known"),
        ("a.q_proj", (64, 8), 3, "tp=3 does not divide num_attention_heads=4"),
        ("a.v_proj", (72, 8), 8, "tp=8 does not divide num_attention_heads=4"),
        ("a.k_proj", (72, 8), 2, "n=36 is not a positive multiple of 8"),
        ("a.up_proj", (64, 8), 3, "n=64 does not split into 3 shards"),
        ("a.up_proj", (24, 8), 2, "n=12 is not a positive multiple of 8"),
        ("a.down_proj", (64, 12), 4, "k=96 in 4 shards of 24: no group size"),
    ],
)
def test_what_does_not_split_is_one_line(
    tmp_path: Path, name: str, shape: tuple[int, int], tp: int, words: str
) -> None:
    tensors = {f"{name}.weight_packed": torch.zeros(shape, dtype=torch.int32)}
    folder = write(tmp_path / "model", tiny(), tensors, KINDS["symmetric"].config, dtype="float16")
    with pytest.raises(ShapesError, match=words) as caught:
        parse_shapes(folder, tp=tp)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", DECODERS)
@pytest.mark.parametrize("head_dim", [24, None])
def test_known_decoders_have_the_linears_that_transformers_gives_them(
    tmp_path: Path, model_type: str, head_dim: int | None
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    told = {"model_type": model_type, "vocab_size": 128, "pad_token_id": 0, **sizes}
    told |= {} if "num_key_value_heads" in DECODERS[model_type] else {"num_key_value_heads": 2}
    if head_dim or "head_dim" not in DECODERS[model_type]:
        told["head_dim"] = head_dim or 32
    (tmp_path / "config.json").write_text(json.dumps(told))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    linears = {
        name.rpartition(".")[2].removesuffix("_proj"): (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    shapes = parse_shapes(tmp_path, group_size=32)
    found = {name: (shape.layer.n, shape.layer.k) for shape in shapes for name in shape.projections}
    assert {name: found[name] for name in found if name not in ("qkv", "gate_up")} == linears
    assert ("qkv" in found) == (model_type in ARCHITECTURES)


def damaged(folder: Path, change: str) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    first = next(name for name in header if name.endswith("qweight"))
    changed = {
        "long": (2**62).to_bytes(8, "little") + content[8:],
        "empty": b"",
        "short": content[:-100],
        "cut": content[:100],
        "nested": with_header("[" * 100_000 + "]" * 100_000),
        "list": with_header("[]"),
        "no shape": with_header(json.dumps({first: {"dtype": "I32"}})),
        "text": with_header(json.dumps({first: {**header[first], "shape": "ab"}})),
        "negative": with_header(json.dumps({first: {**header[first], "shape": [-1, 8]}})),
        "three": with_header(json.dumps({first: {**header[first], "shape": [1, 8, 8]}})) + content,
        "nothing": with_header("{}"),
        "odd dtype": with_header(json.dumps({first: {**header[first], "dtype": ["I32"]}})),
        "two formats": with_header(json.dumps({first: header[first], "b.weight_packed": header[first]}))
        + content,
    }
    file.unlink()
    if change == "fifo":
        os.mkfifo(file)
    else:
        file.write_bytes(changed[change])


def with_header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("long", "bytes, of which 4611686018427387904 are to be its header; download it again"),
        ("empty", "it has 0 bytes, of which 0 are"),
        ("short", "it has [0-9]+ of [0-9]+ bytes; download it again"),
        ("cut", "it has 100 bytes, of which"),
        ("nested", "it is nested too deep"),
        ("list", "its header is not an object"),
        ("no shape", "its header does not describe model.layers"),
        ("text", r"the shape \['a', 'b'\]"),
        ("negative", r"the shape \[-1, 8\]"),
        ("three", r"is \[1, 8, 8\], expected two dimensions"),
        ("nothing", "no linear is quantized in the format awq_gemm"),
        ("odd dtype", "its header does not describe model.layers"),
        ("two formats", "has b.weight_packed, which is of no awq_gemm checkpoint"),
        ("fifo", "model.safetensors is not a regular file"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, change: str, words: str) -> None:
    folder = stored(tmp_path / "model", tiny())
    damaged(folder, change)
    with pytest.raises(ShapesError, match=words) as caught:
        parse_shapes(folder)
    assert "\n" not in str(caught.value)


def test_headers_are_those_of_the_file(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros((2, 3), dtype=torch.int16), "b": torch.zeros((), dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_headers([tmp_path / "a.safetensors"])
    assert {name: (header.dtype, header.shape) for name, header in found.items()} == {
        "a": ("I16", (2, 3)),
        "b": ("BF16", ()),
    }
