"""What autotune.load refuses: one line that has the name and the value."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import KINDS, Tensors, one_thread, quantize, stored, tiny, write
from transformers import AutoModelForCausalLM

import autotune
from autotune.models.quantizer import Quantizer
from autotune.values.errors import AutotuneError, DeviceError, FormatError, LayerError

pytestmark = [
    pytest.mark.usefixtures(one_thread.__name__),
    pytest.mark.filterwarnings("ignore:no config was measured"),
]
UP = "model.layers.1.mlp.up_proj"
NORM = "model.layers.0.input_layernorm.weight"
AWQ = KINDS["awq"].config


def eight_bits(tensors: Tensors) -> None:
    """Twice the words for the same columns."""
    tensors[f"{UP}.qweight"] = tensors[f"{UP}.qweight"].repeat(1, 2)
    tensors[f"{UP}.qzeros"] = tensors[f"{UP}.qzeros"].repeat(1, 2)
    tensors[f"{UP}.scales"] = tensors[f"{UP}.scales"].repeat(1, 2)


def other_format(tensors: Tensors) -> None:
    tensors[f"{UP}.weight_packed"] = tensors.pop(f"{UP}.qweight")


def elsewhere(tensors: Tensors) -> None:
    for last in ("qweight", "qzeros", "scales"):
        tensors[f"model.layers.0.mlp.experts.0.w1.{last}"] = tensors[f"{UP}.{last}"].clone()


def nan_scale(tensors: Tensors) -> None:
    tensors[f"{UP}.scales"][0, 0] = torch.nan


def without(*names: str) -> Callable[[Tensors], None]:
    def drop(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return drop


def of_shape(name: str, *shape: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{UP}.qweight"), f"{UP}: has no tensor qweight; found qzeros, scales"),
        (without(f"{UP}.scales"), f"{UP}: has no tensor scales; found qweight, qzeros"),
        (without(NORM), f"has no tensor {NORM}; download it again"),
        (
            without(*(f"{UP}.{last}" for last in ("qweight", "qzeros", "scales"))),
            f"has no tensor {UP}.weight;",
        ),
        (of_shape(NORM, 7), f"{NORM} is \\[7\\], expected \\[64\\]"),
        (of_shape(f"{UP}.qzeros", 2, 7), f"{UP}: qzeros is torch.int32 \\[2, 7\\], expected"),
        (eight_bits, f"{UP}: has n=192, k=64 as 4-bit weights, but the model's linear has n=96, k=64"),
        (other_format, f"{UP}.weight_packed is not of the format awq_gemm .* several formats is not read"),
        (elsewhere, "model.layers.0.mlp.experts.0.w1 is quantized, but LlamaForCausalLM has no such module"),
        (nan_scale, f"{UP}: 1 of 192 scales are NaN or infinite"),
    ],
)
def test_tensors(tmp_path: Path, change: Callable[[Tensors], None], message: str) -> None:
    model = tiny()
    tensors = quantize(model, KINDS["awq"])
    change(tensors)
    with pytest.raises(FormatError, match=message):
        autotune.load(write(tmp_path / "model", model, tensors, AWQ), "cpu")


def test_biases(tmp_path: Path) -> None:
    model = tiny("qwen2")
    tensors = quantize(model, KINDS["awq"])
    name = "model.layers.0.self_attn.k_proj"
    bias = tensors.pop(f"{name}.bias")
    with pytest.raises(FormatError, match=f"{name}: has no tensor bias, which the model's linear has"):
        autotune.load(write(tmp_path / "model", model, tensors, AWQ), "cpu")
    tensors[f"{name}.bias"] = bias[:-1]
    with pytest.raises(FormatError, match=rf"{name}: bias is \[31\], expected \[32\]"):
        autotune.load(write(tmp_path / "model", model, tensors, AWQ), "cpu")


def test_a_tied_head_that_is_quantized(tmp_path: Path) -> None:
    model = tiny(tie_word_embeddings=True)
    folder = write(tmp_path / "model", model, quantize(model, KINDS["awq"], skip=()), AWQ)
    with pytest.raises(FormatError, match="lm_head is quantized, but tied"):
        autotune.load(folder, "cpu")


@pytest.mark.parametrize(
    ("quantization", "error", "message"),
    [
        ({**AWQ, "bits": 8}, FormatError, "bits=8; only 4-bit weights are tuned"),
        ({**AWQ, "bits": 3}, FormatError, "bits=3; only 4-bit weights are tuned"),
        (
            {**AWQ, "group_size": 128},
            LayerError,
            r"layers.0.mlp.down_proj: k=96 is not a multiple of group_size=128",
        ),
        ({**AWQ, "group_size": 48}, LayerError, "group_size=48 is not one of 32, 64, 128"),
        ({**AWQ, "version": "gemv"}, FormatError, r"layers.0.mlp.down_proj: "),
        ({"quant_method": "fp8"}, FormatError, "quant_method='fp8' is not one of awq, gptq"),
        (None, FormatError, "config.json has no quantization_config"),
    ],
)
def test_quantization_config(
    tmp_path: Path, quantization: dict[str, Any] | None, error: type[AutotuneError], message: str
) -> None:
    model = tiny()
    folder = write(tmp_path / "model", model, quantize(model, KINDS["awq"]), quantization)
    with pytest.raises(error, match=message):
        autotune.load(folder, "cpu")


@pytest.mark.parametrize("model_type", ["nobody-knows", "vit", None])
def test_an_unsupported_architecture(tmp_path: Path, model_type: str | None) -> None:
    folder = stored(tmp_path / "model", tiny(), model_type=model_type)
    with pytest.raises(FormatError, match=f"no causal model of model_type={model_type!r}"):
        autotune.load(folder, "cpu")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"hidden_size": "big"}, "transformers does not take it: .*'hidden_size' expected int, got str"),
        ({"num_attention_heads": 0}, "transformers does not take it: "),
        ({"model_type": ["llama"]}, r"no causal model of model_type=\['llama'\]"),
        ({"quantization_config": ["awq"]}, r"quantization_config is \['awq'\], which is not an object"),
        ({"num_hidden_layers": 1}, r"layers.1.* is quantized, but LlamaForCausalLM has no such module"),
    ],
)
def test_a_config_that_makes_no_model(tmp_path: Path, told: dict[str, Any], message: str) -> None:
    folder = stored(tmp_path / "model", tiny())
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **told}))
    with pytest.raises(FormatError, match=message) as caught:
        autotune.load(folder, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_a_dtype_that_nothing_computes_in(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = stored(tmp_path / "model", tiny())
    with pytest.raises(FormatError, match=rf"dtype={dtype} on cpu; give dtype= one of torch.float16, "):
        autotune.load(folder, "cpu", dtype=dtype)


@pytest.mark.parametrize("left", [slice(-100), slice(100), slice(4), slice(0)])
def test_a_truncated_shard(tmp_path: Path, left: slice) -> None:
    folder = stored(tmp_path / "model", tiny(), shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[left])
    message = r"model-00002-of-00002.safetensors does not read: .*download it again"
    with pytest.raises(FormatError, match=message):
        autotune.load(folder, "cpu")
    with pytest.raises(FormatError, match=message):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=autotune.QuantizationConfig())


def test_a_pointer_in_the_place_of_a_file(tmp_path: Path) -> None:
    folder = stored(tmp_path / "model", tiny())
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123456\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(FormatError, match=r"model.safetensors does not read: .*download it again"):
        autotune.load(folder, "cpu")


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = stored(tmp_path / "model", tiny(), shards=2)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(FormatError, match=r"model-00001-of-00002.safetensors does not read: No such file"):
        autotune.load(folder, "cpu")


def test_an_index_that_names_too_much(tmp_path: Path) -> None:
    folder = stored(tmp_path / "model", tiny(), shards=2)
    index = folder / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"]["model.extra"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(told))
    with pytest.raises(FormatError, match=r"00001-of-00002.safetensors has no tensor model.extra, which"):
        autotune.load(folder, "cpu")
    index.write_text("{")
    with pytest.raises(FormatError, match=r"index.json does not read as JSON: "):
        autotune.load(folder, "cpu")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nowhere is not a folder"):
        autotune.load(tmp_path / "nowhere", "cpu")
    with pytest.raises(FormatError, match=r"config.json does not read: No such file"):
        autotune.load(tmp_path, "cpu")
    folder = stored(tmp_path / "model", tiny())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"\(found pytorch_model.bin\); only safetensors are read"):
        autotune.load(folder, "cpu")


def test_devices(tmp_path: Path) -> None:
    folder = stored(tmp_path / "model", tiny())
    with pytest.raises(DeviceError, match="device 'tpu'"):
        autotune.load(folder, "tpu")
    config = autotune.QuantizationConfig(device="cuda:99")
    with pytest.raises(DeviceError, match="cuda:99"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


@pytest.mark.parametrize(
    "device_map",
    ["auto", "sequential", {"model": "cpu", "lm_head": "cuda:0"}, {"": "cpu", "lm_head": "disk"}],
)
def test_a_map_of_several_devices(device_map: object) -> None:
    with pytest.raises(FormatError, match=r"device_map=.* may mean several devices; give it one"):
        Quantizer(autotune.QuantizationConfig()).update_device_map(device_map)


def test_the_meta_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="device 'meta' is not auto, cpu, cuda"):
        autotune.load(stored(tmp_path / "model", tiny()), "meta")
    with pytest.raises(DeviceError, match="device 'meta' is not auto, cpu, cuda"):
        Quantizer(autotune.QuantizationConfig()).update_device_map({"": "meta"})


def test_from_pretrained_of_what_is_not_quantized(tmp_path: Path) -> None:
    model = tiny()
    folder = write(tmp_path / "model", model, model.state_dict(), None)
    with pytest.raises(FormatError, match=r"config.json has no quantization_config"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=autotune.QuantizationConfig())


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ("sys.modules['transformers'] = None", "import of transformers halted"),
        ("import transformers; transformers.__version__ = '4.57.1'", "transformers 4.57.1"),
    ],
)
def test_without_transformers(before: str, found: str) -> None:
    code = f"import sys; {before}\nimport autotune\ntry: autotune.load\nexcept Exception as e: print(repr(e))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith(
        'AutotuneError("models are loaded through transformers 5 or later, but found: '
    )
    assert found in ended.stdout
    assert "pip install 'autotune-int4[transformers]'" in ended.stdout
