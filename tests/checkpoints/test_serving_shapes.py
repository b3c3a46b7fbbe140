"""The layers that vLLM runs of a model, by the numbers of its attention and MLP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import KINDS, one_thread, quantize, stored, tiny, write
from command_line import autotune

from autotune.checkpoints.fusion import engine_fused, grouped
from autotune.checkpoints.shapes import PRESETS, parse_shapes
from autotune.values.errors import ShapesError
from autotune.values.layer import Layer

pytestmark = pytest.mark.usefixtures(one_thread.__name__)

LARGE = {"head_dim": 32, "intermediate_size": 192}


def served(model: Path | str, tp: int = 1) -> dict[str, tuple[int, int]]:
    """n and k by projection."""
    shapes = parse_shapes(model, tp=tp, serving=True)
    return {name: (shape.layer.n, shape.layer.k) for shape in shapes for name in shape.projections}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_four_linears(preset: str) -> None:
    assert set(served(preset)) == {"qkv", "o", "gate_up", "down"}


def test_shards_of_a_preset() -> None:
    assert served("llama3-8b", tp=16) == {
        "qkv": (2 * 128 + 2 * 128, 4096),  # a key-value head for two devices
        "o": (4096, 256),
        "gate_up": (2 * 896, 4096),
        "down": (4096, 896),
    }
    with pytest.raises(
        ShapesError, match=r"'llama7b': down: tp=4 .* k=2752 that starts inside a group of 128"
    ):
        parse_shapes("llama7b", tp=4, serving=True)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "qwen3"])
@pytest.mark.parametrize("tp", [1, 2])
def test_a_folder_and_its_config_say_the_same(tmp_path: Path, model_type: str, tp: int) -> None:
    model = tiny(model_type, hidden_size=128, pad_token_id=0, **LARGE)
    folder = stored(tmp_path / "model", model)
    expected = {
        "qkv": ((4 + 2 * 2) * 32 // tp, 128),
        "o": (128, 4 * 32 // tp),
        "gate_up": (2 * 192 // tp, 128),
        "down": (128, 192 // tp),
    }
    assert served(folder, tp) == expected == served(folder / "config.json", tp)
    (folder / "model.safetensors").unlink()
    assert served(folder, tp) == expected


def test_a_shard_that_starts_inside_a_group(tmp_path: Path) -> None:
    folder = stored(tmp_path / "model", tiny(**LARGE))
    with pytest.raises(ShapesError, match=r"down_proj .*k=192 in 4 shards of 48: no group size"):
        served(folder, tp=4)


def test_key_value_heads_of_a_folder_are_repeated(tmp_path: Path) -> None:
    folder = stored(tmp_path / "model", tiny(head_dim=32, intermediate_size=128))
    assert served(folder, tp=4) == {"qkv": (3 * 32, 64), "o": (64, 32), "gate_up": (64, 64), "down": (64, 32)}


def test_projections_that_are_fused_in_the_files(tmp_path: Path) -> None:
    model = tiny("phi3", hidden_size=128, pad_token_id=0, **LARGE)
    folder = stored(tmp_path / "model", model)
    whole = {"qkv": ((4 + 2 * 2) * 32, 128), "gate_up": (384, 128), "o": (128, 128), "down": (128, 192)}
    assert served(folder) == whole
    halves = {
        name: (n // 2, k) if name in ("qkv", "gate_up") else (n, k // 2) for name, (n, k) in whole.items()
    }
    assert served(folder, tp=2) == halves


def test_experts_are_left_out(tmp_path: Path) -> None:
    model = tiny(**LARGE)
    tensors = quantize(model, KINDS["awq"])
    first = next(name for name in tensors if name.endswith("up_proj.qweight")).removesuffix("up_proj.qweight")
    experts = {
        f"{first}experts.3.down_proj.{last}": tensors[f"{first}up_proj.{last}"].repeat(1, 4)
        for last in ("qweight", "qzeros", "scales")
    }
    folder = write(tmp_path / "model", model, tensors | experts, KINDS["awq"].config)
    alone = write(tmp_path / "alone", model, tensors, KINDS["awq"].config)
    assert parse_shapes(folder, serving=True) == parse_shapes(alone, serving=True)
    assert len(parse_shapes(folder)) == 1 + len(parse_shapes(alone))
    folder = write(tmp_path / "experts", model, experts, KINDS["awq"].config)
    with pytest.raises(ShapesError, match="all its int4 layers are experts"):
        parse_shapes(folder, serving=True)


def test_what_vllm_runs_apart() -> None:
    parts = {f"a.{name}_proj": Layer(64, 64, group_size=32) for name in ("q", "k", "v", "gate", "up")}

    def names(model_type: str) -> list[str]:
        return [name for name, _, _ in grouped(parts, engine_fused(model_type), strict=True)]

    assert names("llama") == ["a.qkv_proj", "a.gate_up_proj"]
    assert names("laguna") == ["a.qkv_proj", "a.gate_proj", "a.up_proj"]
    assert names("kimi_linear") == ["a.q_proj", "a.k_proj", "a.v_proj", "a.gate_up_proj"]


def test_parts_that_differ_are_one_line() -> None:
    parts = {f"a.{name}_proj": Layer(64, 64, group_size=32, zero_point=name != "k") for name in "qkv"}
    with pytest.raises(ShapesError, match=r"one qkv_proj of layers that differ: .*a.k_proj is .*false"):
        list(grouped(parts, engine_fused("llama"), strict=True))


def test_the_linear_attention_of_qwen3_next_and_later(tmp_path: Path) -> None:
    types = {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 8}
    folder = stored(tmp_path / "model", tiny("qwen3_5_text", **types))
    found, apart = served(folder), {name for shape in parse_shapes(folder) for name in shape.projections}
    assert {"in_proj_qkvz", "qkv", "gate_up"} <= set(found)
    assert not {"in_proj_qkv", "in_proj_z", "q", "gate"} & set(found)
    assert {"in_proj_qkv", "in_proj_z"} <= apart


def shown(folder: Path, *arguments: str) -> list[dict[str, int]]:
    ended = autotune(
        "lookup",
        "--serving",
        "llama3-8b",
        "--device",
        "cpu",
        "--db",
        "a.db",
        "--json",
        *arguments,
        cwd=folder,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_lookup_shows_what_vllm_runs(tmp_path: Path) -> None:
    answers = shown(tmp_path, "--max-num-batched-tokens", "12")
    assert {answer["m"] for answer in answers} == {1, 2, 4, 8, 16}
    assert {(answer["n"], answer["k"]) for answer in answers} == set(served("llama3-8b").values())
    # Of all that vLLM runs, what takes a CPU seconds is left out, as elsewhere.
    assert {answer["m"] for answer in shown(tmp_path)} == {1, 2, 4, 8, 16, 32}
