"""Linears that are fused when a model is loaded, and the product that their parts share."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import KINDS, logits, one_thread, prompt, quantize, stored, tiny, write
from runtime_tools import assert_is_linear, tokens_of, weight_of
from torch.utils._python_dispatch import TorchDispatchMode

import autotune
from autotune.checkpoints.fusion import fused_layer
from autotune.layouts import QuantizedWeight
from autotune.models.fused import Part, concatenated, concatenated_bias, parts
from autotune.runtime.linear import Int4Linear
from autotune.values.layer import Layer

pytestmark = [
    pytest.mark.usefixtures(one_thread.__name__),
    pytest.mark.filterwarnings("ignore:no config was measured"),
]
LAYERS = [Layer(n, 64, group_size=32) for n in (64, 24, 40)]
BIASES = [None, torch.linspace(-1, 1, 24).half(), None]


@pytest.fixture
def weights() -> list[QuantizedWeight]:
    return [weight_of(layer, seed) for seed, layer in enumerate(LAYERS)]


@pytest.fixture
def fused(weights: list[QuantizedWeight]) -> list[Part]:
    layer = fused_layer(LAYERS)
    assert layer == Layer(128, 64, group_size=32)
    bias = concatenated_bias(BIASES, LAYERS)
    whole = Int4Linear.from_quantized(concatenated(weights, layer), bias).eval()
    return list(parts(whole, [layer.n for layer in LAYERS]))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 1, 0, 2, 2), (0, 0, 2, 1)])
def test_parts_are_right_in_any_order(
    fused: list[Part], weights: list[QuantizedWeight], order: tuple[int, ...]
) -> None:
    x, y = tokens_of((3, 64), torch.float16, 1), tokens_of((2, 5, 64), torch.float16, 2)
    for index in order:
        for tokens in (x, y, y):
            assert_is_linear(fused[index](tokens), weights[index], tokens, BIASES[index])


def test_the_first_part_sees_what_was_written_to_x(fused: list[Part], weights: list[QuantizedWeight]) -> None:
    x = tokens_of((3, 64), torch.float16, 1)
    fused[0](x)
    x.copy_(tokens_of((3, 64), torch.float16, 2))
    for part, weight, bias in zip(fused, weights, BIASES, strict=True):
        assert_is_linear(part(x), weight, x, bias)


def test_nothing_is_kept_after_the_last_part(fused: list[Part]) -> None:
    x = tokens_of((3, 64), torch.float16)
    for part in fused:
        part(x)
    assert fused[0]._product._kept is None


def test_threads_share_parts(fused: list[Part], weights: list[QuantizedWeight]) -> None:
    wrong: list[BaseException] = []
    together = threading.Barrier(4)

    def work(seed: int) -> None:
        try:
            for i in range(50):
                x = tokens_of((2, 64), torch.float16, 100 * seed + i)
                together.wait(60)
                for part, weight, bias in zip(fused, weights, BIASES, strict=True):
                    assert_is_linear(part(x), weight, x, bias)
        except BaseException as error:
            together.abort()
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_layers_that_differ_are_not_fused() -> None:
    assert fused_layer([Layer(64, 64, group_size=32), Layer(64, 128, group_size=32)]) is None
    assert fused_layer([Layer(64, 64, group_size=32), Layer(64, 64, group_size=64)]) is None
    assert fused_layer([Layer(64, 64, group_size=32), Layer(64, 64, group_size=32, zero_point=False)]) is None


def attention_of(model: Any) -> Any:
    return model.model.layers[0].self_attn


@pytest.mark.parametrize("kind", ["desc_act", "symmetric"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_fused_is_unfused(tmp_path: Path, family: str, kind: str) -> None:
    folder = stored(tmp_path / "model", tiny(family), kind)
    fused, unfused = (autotune.load(folder, "cpu", fuse=fuse) for fuse in (True, False))
    torch.testing.assert_close(logits(fused, prompt()), logits(unfused, prompt()), rtol=1e-5, atol=1e-5)
    assert isinstance(attention_of(fused).qkv_proj, Int4Linear)
    assert isinstance(attention_of(unfused).q_proj, Int4Linear)
    names = fused.autotune_report.applied
    assert "model.layers.0.self_attn.qkv_proj" in names
    assert "model.layers.0.mlp.gate_up_proj" in names
    # Packed weights are there once.
    assert sum(buffer.nbytes for buffer in fused.buffers()) <= sum(
        buffer.nbytes for buffer in unfused.buffers()
    )


def test_columns_in_different_orders_are_not_fused(tmp_path: Path) -> None:
    reference = tiny()
    tensors = quantize(reference, KINDS["desc_act"], seed_of=lambda name: int("k_proj" in name))
    model = autotune.load(write(tmp_path / "model", reference, tensors, KINDS["desc_act"].config), "cpu")
    torch.testing.assert_close(logits(model, prompt()), logits(reference, prompt()), rtol=1e-4, atol=1e-4)
    assert isinstance(attention_of(model).q_proj, Int4Linear)
    assert isinstance(model.model.layers[0].mlp.gate_proj, Part)


def test_other_architectures_are_not_fused(tmp_path: Path) -> None:
    model = autotune.load(stored(tmp_path / "model", tiny("gemma")), "cpu")
    assert not any(isinstance(module, Part) for module in model.modules())


def test_a_copy_is_of_its_own(tmp_path: Path) -> None:
    model = autotune.load(stored(tmp_path / "model", tiny()), "cpu")
    copied = copy.deepcopy(model)
    before = logits(model, prompt())
    attention_of(model).qkv_proj.scales.zero_()
    assert torch.equal(logits(copied, prompt()), before)
    assert attention_of(copied).q_proj._product.linear is attention_of(copied).qkv_proj


def test_compiles_as_one_graph(tmp_path: Path) -> None:
    model = autotune.load(stored(tmp_path / "model", tiny()), "cpu")
    mlp, x = model.model.layers[0].mlp, tokens_of((2, 64), torch.float32)
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for tokens in (x, x + 1):
            torch.testing.assert_close(compiled(tokens), mlp(tokens))
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(whole, prompt()), logits(model, prompt()))


def test_between_linears_runs_what_runs_without(tmp_path: Path) -> None:
    reference = tiny()
    model = autotune.load(stored(tmp_path / "model", reference), "cpu")
    ours, theirs = (computed(each, prompt()) for each in (model, reference))
    blocks = len(model.model.layers)
    assert ours.pop("autotune::int4_linear") == 4 * blocks
    assert theirs.pop("aten::mm") - ours.pop("aten::mm") == 7 * blocks
    assert ours == theirs


def computed(model: Any, ids: torch.Tensor) -> Counter[str]:
    """How often each op runs that is no view."""
    ran: Counter[str] = Counter()

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(
            self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            ran[op.name()] += not (op.is_view or op is torch.ops.aten._unsafe_view.default)
            return op(*args, **(kwargs or {}))

    with torch.no_grad(), Listener():
        model(ids)
    return +ran
