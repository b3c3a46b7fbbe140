"""Linears of vLLM's own classes, from the tensors of checkpoints to the product, in the vLLM that is here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import packers
import pytest

pytest.importorskip("vllm")

import torch
from vllm.distributed import parallel_state
from vllm.model_executor.kernels import linear as kernels
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.platforms import PlatformEnum
from worlds import FORMATS, ROWS, K, engine_of_one, load, merged, process, reference

from autotune.layouts import random_weight
from autotune.serving.vllm import door
from autotune.serving.vllm.kernel import AutotuneLinearKernel
from autotune.values.errors import FormatError
from autotune.values.layer import Layer

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = {"fp16": 2e-3, "bf16": 1.6e-2}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with engine_of_one(tmp_path_factory.mktemp("store") / "file") as config:
        yield config


@pytest.fixture
def plugin(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """The plugin, with every layer taken, as long as a test runs."""
    for platform in (PlatformEnum.CUDA, PlatformEnum.CPU):
        monkeypatch.setitem(kernels._POSSIBLE_KERNELS, platform, list(kernels._POSSIBLE_KERNELS[platform]))
    monkeypatch.setattr(AutotuneLinearKernel, "mode", "auto")
    door.enter("1")


def weights_of(group_size: int, dtype: str, zero_point: bool) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    layers = [Layer(n, K, group_size=group_size, dtype=dtype, zero_point=zero_point) for n in ROWS]
    return [random_weight(layer, generator) for layer in layers]


def random(shape: tuple[int, ...], dtype: str, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])


def deviation(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.float() - expected).norm() / expected.norm())


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("name", FORMATS)
def test_a_merged_linear_with_bias_equals_the_reference(name: str, group_size: int, dtype: str) -> None:
    form = FORMATS[name]
    if form.desc_act and (group_size == -1 or not has_order()):
        pytest.skip("one group has one order" if group_size == -1 else "this vLLM has no orders of columns")
    weights = weights_of(group_size, dtype, form.zero_point)
    g_idx = packers.shuffled_groups(K, weights[0].layer.group_size) if form.desc_act else None
    bias = random((sum(ROWS),), dtype)
    linear = merged(form, weights, g_idx, bias)
    assert isinstance(process(linear), AutotuneLinearKernel)
    for shape in ((1, K), (17, K), (2, 3, K)):
        x = random(shape, dtype)
        out, _ = linear(x)
        expected = reference(x.view(-1, K), weights, g_idx, bias).view(*shape[:-1], sum(ROWS))
        assert out.dtype == DTYPES[dtype]
        assert deviation(out, expected) < TOLERANCE[dtype]


def has_order() -> bool:
    """Whether this vLLM tells kernels of an order of columns."""
    return "has_g_idx" in kernels.MPLinearLayerConfig.__dataclass_fields__


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", ["awq", "gptq-desc_act", "compressed"])
def test_weights_may_be_processed_again(name: str) -> None:
    """A second load puts parameters of the checkpoint's shapes in the place of the packed ones."""
    form = FORMATS[name]
    if form.desc_act and not has_order():
        pytest.skip("this vLLM has no orders of columns")
    first, second = weights_of(64, "fp16", form.zero_point), weights_of(64, "fp16", form.zero_point)[::-1]
    second = [random_weight(weight.layer, torch.Generator().manual_seed(7)) for weight in first]
    orders = [packers.shuffled_groups(K, 64, seed) if form.desc_act else None for seed in (0, 1)]
    linear = merged(form, first, orders[0], None)
    fresh = {
        key: (type(each), each.data.clone(), dict(vars(each))) for key, each in linear.named_parameters()
    }
    process(linear)
    packed = {key: each.data_ptr() for key, each in linear.named_parameters()}
    for key, (kind, data, attributes) in fresh.items():
        again = torch.Tensor._make_subclass(kind, data, False)
        again.__dict__.update(attributes)
        delattr(linear, key)
        linear.register_parameter(key, again)
    load(linear, form, second, orders[1])
    process(linear)
    assert packed.keys() == dict(linear.named_parameters()).keys()
    x = random((5, K), "fp16")
    assert deviation(linear(x)[0], reference(x, second, orders[1], None)) < TOLERANCE["fp16"]


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", ["awq", "gptq", "compressed"])
def test_a_shard_of_columns_equals_its_part_of_the_product(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, (whole,) = FORMATS[name], weights_of(64, "fp16", FORMATS[name].zero_point)[:1]
    on_the_second_of_two(monkeypatch)
    config = form.config(64)
    config.packed_modules_mapping = {}
    linear = RowParallelLinear(
        K, ROWS[0], bias=False, params_dtype=torch.float16, reduce_results=False, quant_config=config,
        prefix="mlp.down_proj",
    )  # fmt: skip
    parameters = dict(linear.named_parameters())
    for key, found in form.pack(whole, None).items():
        if key in parameters:
            parameters[key].weight_loader(parameters[key], found)
    assert isinstance(process(linear), AutotuneLinearKernel)
    x = random((5, K // 2), "fp16")
    padded = torch.cat([torch.zeros_like(x), x], 1)
    assert deviation(linear(x)[0], reference(padded, [whole], None, None)) < TOLERANCE["fp16"]


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("bits", [8, 4])
def test_linears_with_quantized_activations_are_left_to_vllm(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    activations = {"num_bits": bits, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
    form = replace(FORMATS["compressed-symmetric"], activations=activations)
    weights = weights_of(32, "fp16", zero_point=False)
    monkeypatch.setitem(kernels._POSSIBLE_KERNELS, PlatformEnum.CPU, [AutotuneLinearKernel])
    # No other kernel is here, and some releases do not know such a linear.
    with pytest.raises((ValueError, NotImplementedError)) as raised:
        merged(form, weights, None, None)
    if AutotuneLinearKernel.__name__ in str(raised.value):
        assert "may do more than multiply" in str(raised.value)


@pytest.mark.usefixtures("plugin")
def test_weights_that_are_not_where_the_engine_runs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    form, weights = FORMATS["awq"], weights_of(64, "fp16", zero_point=True)
    linear = merged(form, weights, None, None)
    elsewhere = SimpleNamespace(device=SimpleNamespace(kind="cuda"))
    monkeypatch.setattr("autotune.serving.vllm.kernel.plans_for", lambda *_: elsewhere)
    with pytest.raises(FormatError, match="the weights are on cpu, but the engine runs on cuda"):
        process(linear)


def on_the_second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    group = parallel_state.get_tp_group()
    monkeypatch.setattr(group, "world_size", 2)
    monkeypatch.setattr(group, "rank_in_group", 1)
