"""Tiny models in whole engines: what they generate, and what becomes of caches, reloads and adapters."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import checkpoints
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
PROMPTS = [[(7 * row + column) % 128 for column in range(9)] for row in range(3)]
NEAR_TIE = 0.05
"""Logits of the reference that are nearer to each other may change places in fp16."""
SIZES = {
    "num_hidden_layers": 1,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
OURS = ["AutotuneLinearKernel"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A folder with two checkpoints and an adapter, and the reference of each."""
    folder = tmp_path_factory.mktemp("engines")
    model, other = checkpoints.tiny(seed=0, **SIZES), checkpoints.tiny(seed=1, **SIZES)
    checkpoints.stored(folder / "model", model)
    checkpoints.stored(folder / "other", other)
    return {"folder": folder, "model": model, "other": other, "adapter": adapter(folder / "adapter", model)}


def adapter(folder: Path, model: Any, rank: int = 4) -> Any:
    """Write a LoRA of two projections; the model with it added."""
    folder.mkdir()
    adapted, tensors = copy.deepcopy(model), {}
    for name, linear in adapted.named_modules():
        if name.endswith(("q_proj", "down_proj")):
            a = torch.randn(rank, linear.in_features) / linear.in_features**0.5
            b = torch.randn(linear.out_features, rank)
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
            linear.weight.data += b @ a
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return adapted


def run(scenario: str, folder: Path, mode: str, tmp_path: Path) -> dict[str, Any]:
    """What the scenario found, in a process with a cache folder that all scenarios of a world share."""
    variables = {
        "AUTOTUNE_VLLM": mode,
        "AUTOTUNE_DB": str(tmp_path / "none.db"),
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    out, log = tmp_path / "found.json", tmp_path / "log"
    command = [sys.executable, str(HERE / "engines.py"), scenario, str(folder), str(out)]
    with log.open("w") as lines:
        ended = subprocess.run(
            command, env={**os.environ, **variables}, stdout=lines, stderr=subprocess.STDOUT, timeout=300
        )
    assert ended.returncode == 0, log.read_text()[-4000:]
    return {**json.loads(out.read_text()), "log": log.read_text()}


def assert_sound(model: Any, generated: list[list[int]]) -> None:
    """Each token is the reference's first choice after those before it, or as good as that."""
    for prompt, tokens in zip(PROMPTS, generated, strict=True):
        logits = checkpoints.logits(model, torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert bool((chosen > logits.amax(1) - NEAR_TIE).all())


def test_an_engine_generates_what_the_checkpoint_means(world: dict[str, Any], tmp_path: Path) -> None:
    found = run("eager", world["folder"], "1", tmp_path)
    assert found["kernels"] == OURS
    assert_sound(world["model"], found["tokens"])
    assert_sound(world["adapter"], found["adapter"])
    assert found["adapter"] != found["tokens"]
    layer = "n=512,k=128,group_size=32,dtype=fp16"
    assert found["log"].count(f"autotune serves {layer}: default m=1-64") == 1
    (linears,) = [line for line in found["metrics"].splitlines() if f'linears{{layer="{layer}"' in line]
    assert float(linears.rpartition(" ")[2]) == 1


def test_weights_may_be_loaded_again(world: dict[str, Any], tmp_path: Path) -> None:
    found = run("reload", world["folder"], "1", tmp_path)
    assert found["kernels"] == OURS
    assert_sound(world["model"], found["tokens"])
    assert found["again"] == found["tokens"]
    assert_sound(world["other"], found["other"])


def test_a_compile_cache_is_never_loaded_onto_other_kernels(world: dict[str, Any], tmp_path: Path) -> None:
    found, other_process = (run(each, world["folder"], "1", tmp_path) for each in ("caches", "warm"))
    assert found["on"]["kernels"] == found["on again"]["kernels"] == other_process["kernels"] == OURS
    assert found["off"]["kernels"] == ["PlainKernel"]
    on, off = set(found["on"]["cached"]), set(found["off"]["cached"])
    assert on < off == set(found["on again"]["cached"]) == set(other_process["cached"])
    for name in ("on", "off", "on again"):
        assert_sound(world["model"], found[name]["tokens"])
    assert found["on"]["tokens"] == found["on again"]["tokens"] == other_process["tokens"]


@pytest.mark.gpu
def test_graphs_of_all_kinds_generate_the_same(world: dict[str, Any], tmp_path: Path) -> None:
    found = run("graphs", world["folder"], "1", tmp_path)
    assert found.keys() > {"eager", "piecewise", "full"}
    for name in ("eager", "piecewise", "full"):
        assert_sound(world["model"], found[name])


@pytest.mark.gpu
def test_weights_survive_a_sleep(world: dict[str, Any], tmp_path: Path) -> None:
    """Kept in the host's memory at level 1; thrown away and loaded again at level 2."""
    found = run("sleep", world["folder"], "1", tmp_path)
    assert_sound(world["model"], found["before"])
    assert found["level 1"] == found["level 2"] == found["before"]
