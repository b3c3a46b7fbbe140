"""autotune.load on checkpoints of the field: other names, odd layers, parts that the class leaves out."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import packers
import pytest
import torch
from checkpoints import (
    KINDS,
    linears_of,
    logits,
    one_thread,
    prompt,
    quantize,
    rounded,
    scaled,
    stored,
    tiny,
    with_a_short_group,
    with_odd_head,
    write,
)

import autotune
from autotune.checkpoints.shapes import parse_shapes
from autotune.runtime.linear import Int4Linear
from autotune.values.errors import FormatError, LayerError

pytestmark = [
    pytest.mark.usefixtures(one_thread.__name__),
    pytest.mark.filterwarnings("ignore:no config was measured"),
]
AWQ = KINDS["awq"]
# The activation of each architecture that AutoAWQ scales, the linear behind it, and numbers of a tiny model.
SCALED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt_bigcode": ("act", "c_proj", {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_inner": 96}),
    "bloom": ("gelu_impl", "dense_4h_to_h", {"n_head": 4, "n_layer": 2}),
    "gpt_neox": ("act", "dense_4h_to_h", {}),
    "gptj": ("act", "fc_out", {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8, "n_inner": 96}),
    "mpt": ("act", "down_proj", {"d_model": 64, "n_heads": 4, "n_layers": 2}),
    "starcoder2": ("act", "c_proj", {}),
}


def assert_same(model: Any, reference: Any) -> None:
    torch.testing.assert_close(logits(model, prompt()), logits(reference, prompt()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", SCALED)
def test_scaled_activations(tmp_path: Path, family: str) -> None:
    act, behind, numbers = SCALED[family]
    reference = tiny(family, **numbers)
    tensors = scaled(reference, act, behind)
    assert_same(autotune.load(write(tmp_path / "model", reference, tensors, AWQ.config), "cpu"), reference)


def test_scales_that_no_linear_takes(tmp_path: Path) -> None:
    reference = tiny("starcoder2")
    tensors = scaled(reference, "act", "c_proj")
    tensors["model.layers.1.mlp.act.scales"] = torch.ones(95)
    with pytest.raises(FormatError, match=r"1.mlp.act.scales is \[95\], but the linears beside it have k="):
        autotune.load(write(tmp_path / "model", reference, tensors, AWQ.config), "cpu")
    tensors["model.layers.1.mlp.act.scales"] = torch.ones(96)
    tensors["model.layers.1.input_layernorm.scales"] = torch.ones(64)
    with pytest.raises(FormatError, match=r"input_layernorm is quantized, but .* has a LayerNorm there"):
        autotune.load(write(tmp_path / "model", reference, tensors, AWQ.config), "cpu")


def test_names_that_transformers_renames_and_parts_that_it_leaves_out(tmp_path: Path) -> None:
    """A checkpoint of a model that also sees and predicts several tokens; its text part is loaded."""
    types = ["linear_attention", "full_attention"]
    reference = tiny("qwen3_5_text", layer_types=types, linear_num_value_heads=8, linear_num_key_heads=4)
    tensors = {
        name.replace("model.", "model.language_model.", 1): found
        for name, found in quantize(reference, AWQ).items()
    }
    some = {name.rpartition(".")[2]: found for name, found in tensors.items() if "mlp.up_proj." in name}
    for other in ("mtp.layers.0.mlp.up_proj", "model.visual.blocks.0.mlp.linear_fc1"):
        tensors |= {f"{other}.{last}": found.clone() for last, found in some.items()}
    model = autotune.load(write(tmp_path / "model", reference, tensors, AWQ.config), "cpu")
    assert_same(model, reference)
    assert set(model.autotune_report.applied) == set(linears_of(reference))
    tensors |= {f"elsewhere.up_proj.{last}": found.clone() for last, found in some.items()}
    with pytest.raises(FormatError, match=r"elsewhere.up_proj is quantized, but .* has no such module"):
        autotune.load(write(tmp_path / "model", reference, tensors, AWQ.config), "cpu")


def test_a_checkpoint_of_the_model_without_its_head(tmp_path: Path) -> None:
    reference = tiny(tie_word_embeddings=True)
    tensors = {name.removeprefix("model."): found for name, found in quantize(reference, AWQ).items()}
    assert_same(autotune.load(write(tmp_path / "model", reference, tensors, AWQ.config), "cpu"), reference)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_experts_are_not_supported(tmp_path: Path, family: str) -> None:
    reference = tiny(family, num_local_experts=2, num_experts=2, moe_intermediate_size=32)
    tensors = quantize(reference, AWQ, skip=("lm_head", ".gate"))
    experts, names = {
        "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
        "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    }[family]
    for name in names:
        weight = rounded(torch.randn(64, 64), True)
        prefix = f"model.layers.0.{experts}.experts.0.{name}"
        tensors |= {f"{prefix}.{last}": found for last, found in packers.awq_gemm(weight).items()}
    folder = write(tmp_path / "model", reference, tensors, AWQ.config)
    with pytest.raises(FormatError, match=r"experts.0.\w+: int4 experts are not supported yet"):
        autotune.load(folder, "cpu")


@pytest.mark.parametrize("shards", [1, 2])
def test_files_of_another_name(tmp_path: Path, shards: int) -> None:
    reference = tiny()
    folder = stored(tmp_path / "model", reference, shards=shards)
    name = "model.safetensors" if shards == 1 else "model.safetensors.index.json"
    (folder / name).rename(folder / f"gptq_{name}")
    assert_same(autotune.load(folder, "cpu"), reference)
    (folder / f"other_{name}").write_bytes((folder / f"gptq_{name}").read_bytes())
    with pytest.raises(FormatError, match=r"no model.safetensors or .* \(found .*; only safetensors"):
        autotune.load(folder, "cpu")


@pytest.mark.parametrize("kind", ["compressed", "symmetric"])
@pytest.mark.parametrize("n", [1, 131])
def test_a_linear_that_no_kernel_takes_is_dense(tmp_path: Path, kind: str, n: int) -> None:
    """The head of a vocabulary that is no multiple of 8, in a format that can store it."""
    reference = tiny(vocab_size=n)
    folder = write(tmp_path / "model", reference, with_odd_head(reference, kind), KINDS[kind].config)
    with pytest.warns(UserWarning, match=f"without a kernel: 1 int4 linear; .*: lm_head .* n={n} is not"):
        model = autotune.load(folder, "cpu")
    tokens = prompt() % n
    torch.testing.assert_close(logits(model, tokens), logits(reference, tokens), rtol=1e-4, atol=1e-4)
    assert type(model.lm_head) is torch.nn.Linear
    assert set(model.autotune_report.skipped) == {"lm_head"}
    assert isinstance(model.model.layers[0].mlp.down_proj, Int4Linear)


@pytest.mark.parametrize("kind", ["awq", "gemv", "gptq", "gptq_v2", "desc_act", "compressed", "symmetric"])
def test_a_linear_whose_last_group_is_short_is_dense(tmp_path: Path, kind: str) -> None:
    reference = tiny(intermediate_size=80)
    folder = write(tmp_path / "model", reference, with_a_short_group(reference, kind), KINDS[kind].config)
    with pytest.warns(UserWarning, match="without a kernel: 2 int4 linears; .* k=80 is not a multiple of"):
        model = autotune.load(folder, "cpu")
    assert_same(model, reference)
    assert set(linears_of(model)) == {f"model.layers.{index}.mlp.down_proj" for index in range(2)}
    tuned = {report.layer for report in model.autotune_report.layers}
    assert {shape.layer for shape in parse_shapes(folder)} == tuned


def test_a_model_of_which_no_kernel_takes_anything(tmp_path: Path) -> None:
    reference = tiny()
    folder = write(tmp_path / "model", reference, quantize(reference, AWQ), {**AWQ.config, "group_size": 48})
    with pytest.raises(LayerError, match=r"layers.0.*_proj: group_size=48 is not one of 32, 64, 128"):
        autotune.load(folder, "cpu")


@pytest.mark.parametrize("kind", ["awq", "gptq", "compressed"])
@pytest.mark.parametrize("fuse", [True, False])
def test_the_files_may_go(tmp_path: Path, kind: str, fuse: bool) -> None:
    """In the files' own dtype, so that nothing is converted on the way."""
    reference = tiny("qwen2")
    tensors = quantize(reference, KINDS[kind])
    halves = {name: found.half() if found.is_floating_point() else found for name, found in tensors.items()}
    folder = write(tmp_path / "model", reference, halves, KINDS[kind].config, dtype="float16")
    model = autotune.load(folder, "cpu", fuse=fuse)
    before = logits(model, prompt())
    state = {name: found.clone() for name, found in model.state_dict().items()}
    with (folder / "model.safetensors").open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.write(b"\xff" * size)
        file.flush()
        for name, found in model.state_dict().items():
            assert torch.equal(found, state[name]), name
        file.truncate(0)
    assert torch.equal(logits(model, prompt()), before)


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "../model/model-00001-of-00002.safetensors", "a/../../b.safetensors", 7, "\0"]
)
def test_an_index_that_leaves_the_folder(tmp_path: Path, file: object) -> None:
    folder = stored(tmp_path / "model", tiny(), shards=2)
    index = folder / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"]["model.norm.weight"] = file
    index.write_text(json.dumps(told))
    with pytest.raises(FormatError, match=r"places model.norm.weight in .*, which is no file of its folder"):
        autotune.load(folder, "cpu")


def test_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    """As the cache of huggingface_hub has them."""
    reference = tiny()
    folder = stored(tmp_path / "model", reference, shards=2)
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(Path("..") / "blobs" / str(number))
    assert_same(autotune.load(folder, "cpu"), reference)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_not_a_file(tmp_path: Path, name: str, kind: str) -> None:
    folder = stored(tmp_path / "model", tiny())
    (folder / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(FormatError, match=f"{name} is not a regular file"):
        autotune.load(folder, "cpu")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("levels", [200, 100_000])
def test_deep_json(tmp_path: Path, name: str, levels: int) -> None:
    folder = stored(tmp_path / "model", tiny(), shards=2)
    (folder / name).write_text('{"a": ' + "[" * levels + "]" * levels + "}")
    with pytest.raises(FormatError, match=f"{name} .*nested"):
        autotune.load(folder, "cpu")


@pytest.mark.parametrize("path", ["no\0thing", "~nobody-knows/model", "x" * 5000])
def test_a_path_that_is_none(path: str) -> None:
    with pytest.raises(FormatError, match=r"does not read|is not a folder"):
        autotune.load(path, "cpu")


def test_the_device_is_chosen_as_on_the_command_line() -> None:
    assert inspect.signature(autotune.load).parameters["device"].default == "auto"


def test_loads_without_a_device(tmp_path: Path) -> None:
    assert autotune.load(stored(tmp_path / "model", tiny())).autotune_report.applied


def test_a_linear_with_a_forward_of_its_own_is_named(tmp_path):
    """A router of Llama 4 is a Linear by its class, but gives more than a product."""
    model = tiny("llama4_text", num_local_experts=8, moe_layers=[1], intermediate_size_mlp=128)
    folder = stored(tmp_path / "model", model)
    with pytest.raises(FormatError, match=r"router is quantized, but .* has a Llama4Router there"):
        autotune.load(folder, device="cpu")
