"""autotune.load on folders of tiny models, against transformers with the dequantized weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import KINDS, greedy, linears_of, logits, one_thread, prompt, quantize, stored, tiny, write
from runtime_tools import store_records
from transformers import AutoModelForCausalLM

import autotune
from autotune.families import registry
from autotune.runtime.linear import Int4Linear
from autotune.values.device import cpu_device
from autotune.values.errors import FormatError
from autotune.values.layer import COARSE, Problem

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma")


pytestmark = [
    pytest.mark.usefixtures(one_thread.__name__),
    pytest.mark.filterwarnings("ignore:no config was measured"),
]


def assert_same(model: Any, reference: Any) -> None:
    assert not model.training
    torch.testing.assert_close(logits(model, prompt()), logits(reference, prompt()), rtol=1e-4, atol=1e-4)
    assert greedy(model, prompt()) == greedy(reference, prompt())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fuse", [True, False])
def test_every_format(tmp_path: Path, kind: str, fuse: bool) -> None:
    reference = tiny(**KINDS[kind].numbers)
    folder = stored(tmp_path / "model", reference, kind)
    model = autotune.load(folder, "cpu", fuse=fuse)
    assert_same(model, reference)
    assert set(linears_of(model)) == set()
    assert len(model.autotune_report.applied) == (8 if fuse else 14)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, family: str) -> None:
    reference = tiny(family)
    folder = stored(tmp_path / "model", reference)
    assert_same(autotune.load(str(folder), "cpu"), reference)


@pytest.mark.parametrize("kind", ["awq", "desc_act", "symmetric"])
def test_from_pretrained(tmp_path: Path, kind: str) -> None:
    reference = tiny("qwen2")
    folder = stored(tmp_path / "model", reference, kind, shards=3)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=autotune.QuantizationConfig())
    assert_same(model, reference)
    assert len(model.autotune_report.applied) == 8
    with pytest.raises(FormatError, match=f"copy {folder} instead"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_configs_of_others_are_treated_as_before(tmp_path: Path) -> None:
    folder = stored(tmp_path / "model", tiny(), "awq")
    _ = autotune.QuantizationConfig
    from transformers import GPTQConfig

    with pytest.raises(ValueError, match=r"AwqConfig .* GPTQConfig"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=GPTQConfig(bits=4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_computes_in_the_dtype_asked_for_or_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    reference = tiny()
    folder = stored(tmp_path / "model", reference, dtype=str(dtype).removeprefix("torch."))
    expected = logits(reference, prompt())
    for model in (autotune.load(folder, "cpu"), autotune.load(folder, "cpu", dtype=dtype)):
        got = logits(model, prompt())
        assert got.dtype == dtype
        # A few dozen roundings of values near the size of the logits.
        atol = 32 * torch.finfo(dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(got.float(), expected, rtol=0, atol=atol)
    wide = autotune.load(folder, "cpu", dtype=torch.float32)
    torch.testing.assert_close(logits(wide, prompt()), expected, rtol=1e-4, atol=1e-4)


def test_shards_and_one_file_are_alike(tmp_path: Path) -> None:
    reference = tiny()
    tensors = quantize(reference, KINDS["awq"])
    one = write(tmp_path / "one", reference, tensors, KINDS["awq"].config)
    many = write(tmp_path / "many", reference, tensors, KINDS["awq"].config, shards=4)
    assert torch.equal(
        logits(autotune.load(one, "cpu"), prompt()), logits(autotune.load(many, "cpu"), prompt())
    )


def test_there_is_nothing_left_to_apply(tmp_path: Path) -> None:
    model = autotune.load(stored(tmp_path / "model", tiny()), "cpu")
    again = autotune.apply(model)
    assert again.applied == ()
    assert set(again.skipped) == set(model.autotune_report.applied)


def test_a_tuned_model_is_loaded_without_a_warning(tmp_path: Path) -> None:
    """And one that is tuned in part with a single one, which names only the layers that are not."""
    folder, database, device = stored(tmp_path / "model", tiny()), tmp_path / "a.db", cpu_device()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = [found.layer for found in autotune.load(folder, "cpu").autotune_report.layers]
    problems = [Problem(layer, bucket) for layer in layers for bucket in COARSE]
    configs = {problem: registry.space(problem, device)[0] for problem in problems}
    store_records(database, device, {problem: configs[problem] for problem in problems[: len(COARSE)]})
    with pytest.warns(UserWarning, match="no config was measured for 6 linears") as caught:
        report = autotune.load(folder, "cpu", db=str(database)).autotune_report
    assert len(caught) == 1
    assert str(layers[0]) not in str(caught[0].message)
    assert all(str(layer) in str(caught[0].message) for layer in layers[1:])
    assert report.coverage == 1 / 4
    store_records(database, device, configs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = autotune.load(folder, "cpu", db=str(database)).autotune_report
    assert report.coverage == 1
    assert [len(found.names) for found in report.layers] == [2] * 4
    assert [answer.config for found in report.layers for answer in found.answers] == list(configs.values())


@pytest.mark.parametrize("content", [b"this is not a database", b""])
def test_a_bad_database_stops_no_load(tmp_path: Path, content: bytes) -> None:
    reference, database = tiny(), tmp_path / "a.db"
    folder = stored(tmp_path / "model", reference)
    database.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(autotune.load(folder, "cpu", db=str(database)), reference)


def test_tied_embeddings(tmp_path: Path) -> None:
    reference = tiny("qwen2", tie_word_embeddings=True)
    model = autotune.load(stored(tmp_path / "model", reference), "cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert_same(model, reference)


def test_what_is_not_quantized_stays_a_linear(tmp_path: Path) -> None:
    reference = tiny()
    skip = ("lm_head", "layers.0.mlp.gate_proj", "layers.1.self_attn.o_proj")
    config = {**KINDS["awq"].config, "modules_to_not_convert": list(skip)}
    folder = write(tmp_path / "model", reference, quantize(reference, KINDS["awq"], skip), config)
    model = autotune.load(folder, "cpu")
    assert_same(model, reference)
    assert set(linears_of(model)) == {"model.layers.0.mlp.gate_proj", "model.layers.1.self_attn.o_proj"}
    # What is left of the first gate and up cannot be fused.
    assert isinstance(model.model.layers[0].mlp.up_proj, Int4Linear)
    assert isinstance(model.model.layers[1].mlp.gate_up_proj, Int4Linear)


def test_a_quantized_head(tmp_path: Path) -> None:
    reference = tiny()
    folder = write(
        tmp_path / "model", reference, quantize(reference, KINDS["gptq"], skip=()), KINDS["gptq"].config
    )
    model = autotune.load(folder, "cpu")
    assert_same(model, reference)
    assert isinstance(model.lm_head, Int4Linear)


def test_biases_of_zeros_are_dropped(tmp_path: Path) -> None:
    """AutoGPTQ stores one for every linear."""
    reference = tiny()
    tensors = quantize(reference, KINDS["gptq"])
    tensors |= {
        f"{name}.bias": torch.zeros(linear.out_features) for name, linear in linears_of(reference).items()
    }
    model = autotune.load(write(tmp_path / "model", reference, tensors, KINDS["gptq"].config), "cpu")
    assert_same(model, reference)
    assert model.model.layers[0].self_attn.qkv_proj.bias is None


@pytest.mark.parametrize(("name", "kind"), [("quantize_config.json", "gptq"), ("quant_config.json", "awq")])
def test_a_config_in_a_file_of_its_own(tmp_path: Path, name: str, kind: str) -> None:
    reference = tiny()
    folder = write(tmp_path / "model", reference, quantize(reference, KINDS[kind]), None)
    told = {key: value for key, value in KINDS[kind].config.items() if key != "quant_method"}
    (folder / name).write_text(json.dumps({"desc_act": False, **told} if kind == "gptq" else told))
    assert_same(autotune.load(folder, "cpu"), reference)


def test_a_trained_model_says_the_same(tmp_path: Path) -> None:
    """A text that the model has learnt by heart, through both ways of computing its 4-bit weights."""
    text = torch.tensor([list(b"the quick brown fox jumps over the lazy dog; ") * 2])
    model = tiny(max_position_embeddings=128).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = model(text, labels=text).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = stored(tmp_path / "model", model.eval())
    start, count = text[:, :8], 60
    said = greedy(autotune.load(folder, "cpu"), start, count)
    assert said == greedy(model, start, count)
    assert said == text[:, 8 : 8 + count].tolist()
