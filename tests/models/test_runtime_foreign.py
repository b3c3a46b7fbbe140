"""apply on models that other libraries loaded."""

from __future__ import annotations

import warnings
from pathlib import Path

import foreign
import packers
import pytest
import torch
from runtime_tools import AwqLinear, assert_is_linear, tokens_of, weight_of

import autotune
from autotune.layouts import QuantizedWeight
from autotune.models.apply import apply
from autotune.models.report import Report
from autotune.runtime.linear import Int4Linear
from autotune.values.layer import Layer


@pytest.fixture(autouse=True)
def _own_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "none.db"))


def quiet_apply(model: torch.nn.Module) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return apply(model)


def assert_computes(
    linear: torch.nn.Module, weight: QuantizedWeight, bias: torch.Tensor | None = None, *shape: int
) -> None:
    x = tokens_of((*(shape or (3,)), weight.layer.k), weight.scales.dtype)
    assert isinstance(linear, Int4Linear)
    assert_is_linear(linear(x), weight, x, bias)


def test_a_model_of_every_kind_of_linear() -> None:
    bias = torch.linspace(-1, 1, 128).half()
    weights = {
        kind: weight_of(Layer(128, 256, group_size=64, zero_point=kind not in foreign.SYMMETRIC), seed)
        for seed, kind in enumerate(foreign.MODULES)
    }
    model = torch.nn.ModuleDict(
        {kind: foreign.MODULES[kind](weight, bias) for kind, weight in weights.items()}
    )
    report = quiet_apply(model)
    assert report.skipped == {}
    assert set(report.applied) == set(foreign.MODULES)
    assert [layer.layer.zero_point for layer in report.layers] == [True, False]
    for kind, weight in weights.items():
        assert_computes(model[kind], weight, bias)
        assert not model[kind].training
    again = quiet_apply(model)
    assert again.applied == ()
    assert set(again.skipped.values()) == {"is an Int4Linear already"}


@pytest.mark.parametrize("kind", ["TorchLinear", "MarlinLinear after", "compressed-tensors"])
def test_desc_act_gathers_x(kind: str) -> None:
    """Each column of x meets the weight that g_idx and the order of columns within a group give it."""
    weight = weight_of(Layer(128, 256, group_size=64, zero_point=kind not in foreign.SYMMETRIC))
    g_idx = packers.shuffled_groups(256, 64)
    model = torch.nn.Sequential(foreign.MODULES[kind](weight, None, g_idx))
    quiet_apply(model)
    order = torch.argsort(g_idx, stable=True)
    for shape in ((1,), (2, 5), (0,)):
        x = tokens_of((*shape, 256), torch.float16)
        assert_is_linear(model(x), weight, x[..., order])


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_scales_become_what_the_rest_of_the_model_computes_in(name: str, dtype: torch.dtype) -> None:
    weight = weight_of(Layer(128, 256, group_size=64))
    model = torch.nn.Sequential(torch.nn.LayerNorm(256, dtype=dtype), foreign.autogptq(weight))
    report = quiet_apply(model)
    layer = Layer(128, 256, group_size=64, dtype=name)
    assert [found.layer for found in report.layers] == [layer]
    assert_computes(model[1], QuantizedWeight(layer, weight.q, weight.scales.to(dtype), weight.zeros))
    assert model(torch.ones(2, 256, dtype=dtype)).dtype == dtype


def test_scales_stay_where_the_model_computes_in_two_dtypes() -> None:
    norms = (torch.nn.LayerNorm(256, dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32))
    model = torch.nn.Sequential(*norms, foreign.autogptq(weight_of(Layer(128, 256, group_size=64))))
    assert [found.layer.dtype for found in quiet_apply(model).layers] == ["fp16"]


def test_what_cannot_be_tuned_is_left_alone_and_reported() -> None:
    weight = weight_of(Layer(128, 256, group_size=64))
    good = foreign.llm_awq(weight)
    model = torch.nn.ModuleDict(
        {
            "three_bits": foreign.linear("TorchLinear", weight, packers.gptq(weight), bits=3),
            "eight_bits": foreign.linear("WQLinear_GEMM", weight, packers.awq_gemm(weight), w_bit=8),
            "groups": foreign.linear("TorchLinear", weight, packers.gptq(weight), bits=4, group_size=48),
            "shuffled": foreign.linear("ExllamaV2Linear", weight, packers.gptq(weight), bits=4, q_handle=1),
            "meta": foreign.autogptq(weight).to("meta"),
            "dense": torch.nn.Linear(256, 128, dtype=torch.float16),
            "good": good,
        }
    )
    kept = {name: module for name, module in model.items() if name != "good"}
    report = quiet_apply(model)
    assert report.applied == ("good",)
    assert {name: module for name, module in model.items() if name != "good"} == kept
    reasons = {
        "three_bits": "bits=3",
        "eight_bits": "bits=8",
        "groups": "group_size=48",
        "shuffled": "ExLlama",
        "meta": "meta device",
    }
    assert report.skipped.keys() == reasons.keys()
    assert all(reason in report.skipped[name] for name, reason in reasons.items())
    assert all(f": {report.skipped[name]} ({name})" in str(report) for name in reasons)


def test_odd_shapes() -> None:
    weights = [
        weight_of(layer)
        for layer in (
            Layer(1376, 96, group_size=32),
            Layer(72, 1376, group_size=32),
            Layer(8, 40, group_size=-1),
        )
    ]
    model = torch.nn.Sequential(*(AwqLinear(weight) for weight in weights))
    assert len(quiet_apply(model).applied) == 3
    for linear, weight in zip(model, weights, strict=True):
        assert_computes(linear, weight)
        assert_computes(linear, weight, None, 0)


def test_a_module_whose_own_kernel_is_tuned_keeps_it() -> None:
    @autotune.kernel(space={"split_k_iters": [8, 4]}, name="their_gemv", device="cpu")
    def their_gemv(x, weight, out, *, split_k_iters):
        """Never run: only its tunables matter here."""

    @autotune.kernel(space={"split_k_iters": [16]}, name="their_gpu_gemv")
    def their_gpu_gemv(x, weight, out, *, split_k_iters):
        """For another kind of device than the model is on."""

    weight = weight_of(Layer(128, 256, group_size=64))
    model = torch.nn.ModuleDict({"theirs": foreign.llm_awq(weight), "plain": foreign.autogptq(weight)})
    theirs = model["theirs"]
    theirs.split_k_iters = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = apply(model, kernels=[their_gpu_gemv, their_gemv])
    assert model["theirs"] is theirs
    assert theirs.split_k_iters == 8
    assert report.applied == ("plain",)
    assert report.skipped == {"theirs": "keeps its own kernel, now their_gemv:split_k_iters=8"}


@pytest.mark.gpu
def test_linears_on_two_kinds_of_device() -> None:
    weights = [weight_of(Layer(128, 256, group_size=64), seed) for seed in range(2)]
    model = torch.nn.Sequential(foreign.llm_awq(weights[0]), foreign.autogptq(weights[1]).cuda())
    report = quiet_apply(model)
    assert [layer.device for layer in report.layers] == ["cpu", "cuda:0"]
    assert_computes(model[0], weights[0])
    x = tokens_of((3, 256), torch.float16)
    assert_is_linear(model[1](x.cuda()).cpu(), weights[1], x)
