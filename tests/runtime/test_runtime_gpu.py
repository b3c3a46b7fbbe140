"""The runtime on a GPU: every family against the reference, graphs, streams, moves between devices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runtime_tools import AwqLinear, assert_is_linear, splitting_lookup, store_records, tokens_of, weight_of

from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.formats import awq_gemm
from autotune.jit import compiler
from autotune.models.apply import apply
from autotune.records.lookup import Lookup
from autotune.runtime.linear import Int4Linear
from autotune.runtime.op import int4_linear
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.search.sweep import sweep
from autotune.store.store import Store
from autotune.values.device import find_device
from autotune.values.errors import CompileError, DeviceError, LayerError
from autotune.values.layer import COARSE, Layer, Problem

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:no config was measured")]

LAYER = Layer(1032, 2048)


@pytest.fixture
def split(tmp_path: Path) -> Lookup:
    return splitting_lookup(LAYER, find_device("cuda"), tmp_path)


def cuda_tokens(shape: tuple[int, ...], seed: int = 1, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return tokens_of(shape, dtype, seed, "cuda")


@pytest.mark.parametrize(
    "layer",
    [
        LAYER,
        Layer(520, 1056, group_size=32, dtype="bf16"),
        Layer(72, 136, group_size=-1, zero_point=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_output_is_the_dequantized_matmul(layer: Layer, with_bias: bool) -> None:
    dtype = TORCH_DTYPES[layer.dtype]
    weight = weight_of(layer, device="cuda")
    bias = torch.linspace(-1, 1, layer.n, device="cuda").to(dtype) if with_bias else None
    linear = Int4Linear.from_quantized(weight, bias)
    for m in (1, 2, 7, 16, 65, 300, 4100):
        x = cuda_tokens((m, layer.k), m, dtype)
        assert_is_linear(linear(x), weight, x, bias)
    assert linear(cuda_tokens((2, 0, layer.k), dtype=dtype)).shape == (2, 0, layer.n)


def test_x_that_is_strided_or_not_aligned() -> None:
    weight = weight_of(LAYER, device="cuda")
    linear = Int4Linear.from_quantized(weight)
    for x in (
        cuda_tokens((LAYER.k, 6)).T,
        cuda_tokens((6 * LAYER.k + 1,))[1:].view(6, LAYER.k),
        cuda_tokens((3, 2, LAYER.k)).transpose(0, 1),
    ):
        assert_is_linear(linear(x), weight, x)


def test_awq_tensors_pack_the_same_on_both_kinds_of_device() -> None:
    tensors = awq_gemm.from_quantized(weight_of(LAYER))
    here = Int4Linear.from_awq(*tensors)
    there = Int4Linear.from_awq(*(tensor.cuda() for tensor in tensors))
    x = tokens_of((4, LAYER.k), torch.float16)
    weight = weight_of(LAYER)
    assert_is_linear(here(x), weight, x)
    assert_is_linear(there(x.cuda()).cpu(), weight, x)


def test_grad_and_inference_modes_mix_at_any_m() -> None:
    weight = weight_of(LAYER, device="cuda")
    linear = Int4Linear.from_quantized(weight).eval()
    for m in (1, 16, 512):
        x = cuda_tokens((m, LAYER.k)).requires_grad_()
        with torch.inference_mode():
            expected = linear(x.detach()).clone()
        out = linear(x)
        assert not out.requires_grad
        assert torch.equal(out, expected)


def test_devices_that_do_not_fit_are_named() -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER, device="cuda"))
    with pytest.raises(LayerError, match="x is on cpu, but the weight is packed for cuda"):
        linear(tokens_of((1, LAYER.k), torch.float16))
    with pytest.raises(DeviceError, match="packed for cuda and cannot move to cpu"):
        linear.cpu()
    assert linear.cuda().to("cuda:0") is linear


def test_the_op_keeps_the_rules_of_torch() -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER, device="cuda"))
    buffers = (linear.qweight, linear.scales, linear.zeros, linear.bias)
    torch.library.opcheck(int4_linear, (cuda_tokens((2, 3, LAYER.k)), *buffers, linear.plans.handle))


@pytest.mark.parametrize("m", [1, 16])
def test_a_captured_call_follows_its_input(split: Lookup, m: int) -> None:
    """Captured at the first call of all: nothing is loaded or allocated that a capture forbids."""
    weight = weight_of(LAYER, device="cuda")
    linear = Int4Linear.from_quantized(weight, lookup=split)
    assert linear.plans.answer(m).config["split_k"] == 4
    x = cuda_tokens((m, LAYER.k))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first, second = linear(x), linear(x)
    for seed in (5, 6, 7):
        x.copy_(cuda_tokens((m, LAYER.k), seed))
        graph.replay()
        torch.cuda.synchronize()
        assert_is_linear(first, weight, x)
        assert torch.equal(first, second)
        assert torch.equal(first, linear(x))


def test_a_large_m_is_captured_too() -> None:
    weight = weight_of(LAYER, device="cuda")
    linear = Int4Linear.from_quantized(weight)
    x = cuda_tokens((600, LAYER.k))
    linear(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = linear(x)
    x.copy_(cuda_tokens((600, LAYER.k), 9))
    graph.replay()
    torch.cuda.synchronize()
    assert_is_linear(out, weight, x)


def test_two_streams_at_once_give_what_one_gives(split: Lookup) -> None:
    weights = [weight_of(LAYER, seed, "cuda") for seed in (1, 2)]
    linears = [Int4Linear.from_quantized(weight, lookup=split) for weight in weights]
    tokens = [cuda_tokens((m, LAYER.k), m) for m in (1, 16)]
    expected = [linear(x) for linear, x in zip(linears, tokens, strict=True)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results: list[list[torch.Tensor]] = [[], []]
    for _ in range(200):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(linears[i](tokens[i]))
    torch.cuda.synchronize()
    for got, want in zip(results, expected, strict=True):
        assert all(torch.equal(out, want) for out in got)


def test_a_graph_replayed_beside_eager_calls_gives_what_both_give_alone(split: Lookup) -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER, device="cuda"), lookup=split)
    x, y = cuda_tokens((1, LAYER.k), 1), cuda_tokens((16, LAYER.k), 2)
    beside, replaying = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(beside):
        eager = linear(y)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=beside):
        out = linear(x)
    expected = linear(x)
    copies, calls = [], []
    torch.cuda.synchronize()
    for _ in range(200):
        with torch.cuda.stream(replaying):
            graph.replay()
            copies.append(out.clone())
        with torch.cuda.stream(beside):
            calls.append(linear(y))
    torch.cuda.synchronize()
    assert all(torch.equal(copy, expected) for copy in copies)
    assert all(torch.equal(call, eager) for call in calls)


def test_apply_moves_a_model_to_the_gpu_as_it_packs(tmp_path: Path) -> None:
    weight = weight_of(LAYER)
    model = torch.nn.Sequential(AwqLinear(weight), torch.nn.Linear(LAYER.n, 8, dtype=torch.float16))
    report = apply(model, db=str(tmp_path / "none.db"), device="cuda")
    model.to("cuda")
    assert [layer.device for layer in report.layers] == ["cuda:0"]
    x = tokens_of((3, LAYER.k), torch.float16)
    assert_is_linear(model[0](x.cuda()).cpu(), weight, x)
    assert model(x.cuda()).shape == (3, 8)


def test_apply_follows_records(tmp_path: Path) -> None:
    device = find_device("cuda")
    problem = Problem(LAYER, 512)
    default = registry.default_config(problem, device)
    valid = (config for family in registry.families_of(device) for config in family.valid(problem, device))
    config = next(config for config in valid if config != default)
    store_records(tmp_path / "records.db", device, {problem: config})
    weight = weight_of(LAYER, device="cuda")
    model = torch.nn.Sequential(AwqLinear(weight))
    report = apply(model, db=str(tmp_path / "records.db"))
    assert report.hit == 1
    assert next(a for a in report.layers[0].answers if a.source == "exact").config == config
    x = cuda_tokens((512, LAYER.k))
    assert_is_linear(model[0](x), weight, x)


def test_a_swept_layer_needs_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = find_device("cuda")
    path = str(tmp_path / "swept.db")
    with Store.open(path) as store, LocalExecutor(device) as executor:
        outcomes = list(sweep([Problem(LAYER, m) for m in COARSE], store, [executor], budget_s=20.0))
    assert all(outcome.record is not None for outcome in outcomes)
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "empty"))

    def none() -> None:
        raise CompileError("there is no compiler")

    monkeypatch.setattr(compiler, "_compiler", none)
    weight = weight_of(LAYER, device="cuda")
    linear = Int4Linear.from_quantized(weight, lookup=Lookup(device, path))
    for m in (1, 3, 16, 64, 256, 1000):
        x = cuda_tokens((m, LAYER.k), m)
        assert_is_linear(linear(x), weight, x)
