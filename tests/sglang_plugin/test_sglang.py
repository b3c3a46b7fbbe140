"""The plugin inside the classes of a real SGLang, on the CPU; `make test-sglang` installs what that needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import packers
import pytest
import torch
from runtime_tools import assert_is_linear, tokens_of, weight_of

from autotune.layouts import QuantizedWeight
from autotune.schemes.int4 import TORCH_DTYPES, shard
from autotune.serving import sglang as plugin
from autotune.values.layer import Layer

if find_spec("sglang") is None:
    pytest.skip("SGLang is not installed here; run `make test-sglang`", allow_module_level=True)
# SGLang imports torchvision, whose binary is made for CUDA and does not load beside torch for the CPU.
for _op in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import sglang_layers as made  # noqa: E402
from sglang.srt.hardware_backend.gpu.quantization.awq_kernels import AWQMarlinLinearKernel  # noqa: E402
from sglang.srt.hardware_backend.gpu.quantization.gptq_kernels import GPTQMarlinLinearKernel  # noqa: E402
from sglang.srt.layers import linear as linears  # noqa: E402
from sglang.srt.layers.quantization import marlin_utils  # noqa: E402
from sglang.srt.layers.quantization.compressed_tensors.schemes import CompressedTensorsWNA16  # noqa: E402
from sglang.srt.plugins import load_plugins  # noqa: E402
from sglang.srt.plugins.hook_registry import HookRegistry  # noqa: E402

CLASSES = (
    (AWQMarlinLinearKernel, "apply"),
    (GPTQMarlinLinearKernel, "apply"),
    (CompressedTensorsWNA16, "apply_weights"),
)


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> Iterator[None]:
    """SGLang with its plugins, as each of its processes has it, on a machine that says it has an H200."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugin.SWITCH, "1")
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        patch.setattr(marlin_utils, "get_device_capability", lambda *_: (9, 0))
        load_plugins()
        yield


@pytest.fixture(autouse=True)
def _every_line() -> None:
    plugin._say.cache_clear()


def row(config: Any, k: int, n: int, dtype: torch.dtype = torch.float16, bias: bool = False) -> Any:
    return linears.RowParallelLinear(
        k, n, bias=bias, reduce_results=False, params_dtype=dtype, quant_config=config, prefix="layers.0.down"
    )


def joined(parts: list[QuantizedWeight]) -> QuantizedWeight:
    """The weights one below the other."""
    whole = replace(parts[0].layer, n=sum(part.layer.n for part in parts))
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return QuantizedWeight(
        whole,
        torch.cat([part.q for part in parts]),
        torch.cat([part.scales for part in parts], dim=1),
        torch.cat(zeros, dim=1) if zeros else None,
    )


@pytest.mark.parametrize(("wrapped", "call"), CLASSES, ids=lambda value: getattr(value, "__name__", value))
def test_the_entry_point_wraps_each_method_once(wrapped: type, call: str) -> None:
    plugin.register()
    HookRegistry.apply_hooks()
    for method in ("process_weights_after_loading", call):
        original = getattr(wrapped, method).__wrapped__
        assert not hasattr(original, "__wrapped__")
        assert original.__module__ == wrapped.__module__


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_a_shard_of_merged_awq(rank: int, dtype: str, group_size: int) -> None:
    parts = [weight_of(Layer(128, 256, group_size=group_size, dtype=dtype), seed) for seed in (1, 2)]
    with made.rank_of(rank, 2):
        merged = linears.MergedColumnParallelLinear(
            256, [128, 128], bias=True, params_dtype=TORCH_DTYPES[dtype],
            quant_config=made.awq(group_size), prefix="layers.0.gate_up",
        )  # fmt: skip
        bias = tokens_of((256,), TORCH_DTYPES[dtype])
        for part, weight in enumerate(parts):
            made.load(merged, packers.awq_gemm(weight), part)
            made.load(merged, {"bias": bias[128 * part : 128 * (part + 1)]}, part)
        made.finish(merged)
    x = tokens_of((5, 256), TORCH_DTYPES[dtype])
    own_bias = torch.cat([half.chunk(2)[rank] for half in bias.chunk(2)])
    assert_is_linear(made.call(merged, x), joined([shard(part, 0, rank, 2) for part in parts]), x, own_bias)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("group_size", [128, -1])
def test_a_shard_of_symmetric_gptq_split_over_k(rank: int, group_size: int) -> None:
    weight = weight_of(Layer(128, 512, group_size=group_size, dtype="bf16", zero_point=False))
    with made.rank_of(rank, 2):
        linear = row(made.gptq(group_size), 512, 128, torch.bfloat16)
        made.load(linear, packers.gptq(weight))
        made.finish(linear)
    x = tokens_of((3, 256), torch.bfloat16)
    assert_is_linear(made.call(linear, x), shard(weight, 1, rank, 2), x)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_shard_of_compressed_tensors_qkv(symmetric: bool) -> None:
    sizes = {"q": 256, "k": 128, "v": 128}
    parts = {
        name: weight_of(Layer(n, 256, group_size=64, zero_point=not symmetric), seed)
        for seed, (name, n) in enumerate(sizes.items())
    }
    with made.rank_of(1, 2):
        qkv = linears.QKVParallelLinear(
            256, 64, 4, 2, bias=False, params_dtype=torch.float16,
            quant_config=made.compressed_tensors(64, symmetric), prefix="layers.0.qkv",
        )  # fmt: skip
        for name, weight in parts.items():
            made.load(qkv, packers.compressed_tensors(weight), name)
        made.finish(qkv)
    x = tokens_of((2, 256), torch.float16)
    assert_is_linear(made.call(qkv, x), joined([shard(weight, 0, 1, 2) for weight in parts.values()]), x)


@pytest.mark.parametrize(
    ("config", "packer"),
    [
        (lambda: made.gptq(64, desc_act=True), packers.gptq),
        (lambda: made.compressed_tensors(64, actorder="group"), packers.compressed_tensors),
    ],
    ids=["gptq", "compressed_tensors"],
)
def test_columns_in_another_order(config: Callable[[], Any], packer: Callable[..., packers.Tensors]) -> None:
    weight = weight_of(Layer(128, 256, group_size=64, zero_point=False))
    g_idx = packers.shuffled_groups(256, 64)
    with made.rank_of(0, 1):
        linear = row(config(), 256, 128)
        made.load(linear, packer(weight, g_idx))
        made.finish(linear)
    x = tokens_of((4, 256), torch.float16)
    assert_is_linear(made.call(linear, x), weight, x[:, torch.argsort(g_idx, stable=True)])


def awq_linear(weight: QuantizedWeight) -> Any:
    with made.rank_of(0, 1):
        linear = row(made.awq(weight.layer.group_size), weight.layer.k, weight.layer.n)
        made.load(linear, packers.awq_gemm(weight))
        made.finish(linear)
    return linear


def test_parameters_are_plain_and_keep_their_names() -> None:
    linear = awq_linear(weight_of(Layer(128, 256)))
    for name in ("qweight", "scales", "qzeros"):
        assert type(linear._parameters[name]) is torch.nn.Parameter, name


def test_a_compiled_linear_is_one_op() -> None:
    linear = awq_linear(weight_of(Layer(128, 256)))
    targets = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        targets.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    x = tokens_of((4, 256), torch.float16)
    with torch.no_grad():
        out = torch.compile(lambda x: made.call(linear, x), backend=backend, fullgraph=True)(x)
    assert targets == [torch.ops.autotune.int4_linear.default]
    assert torch.equal(out, made.call(linear, x))


def test_a_second_pass_over_packed_weights_changes_nothing() -> None:
    linear = awq_linear(weight_of(Layer(128, 256)))
    x = tokens_of((4, 256), torch.float16)
    before = made.call(linear, x)
    made.finish(linear)
    assert torch.equal(made.call(linear, x), before)


def test_weights_that_are_loaded_again_are_served_again() -> None:
    linear = awq_linear(weight_of(Layer(128, 256), seed=1))
    other = weight_of(Layer(128, 256), seed=2)
    with made.rank_of(0, 1):
        linear.quant_method.create_weights(
            linear, 256, [128], 256, 128, torch.float16, weight_loader=linear.weight_loader_v2
        )
        made.load(linear, packers.awq_gemm(other))
        made.finish(linear)
    x = tokens_of((4, 256), torch.float16)
    assert_is_linear(made.call(linear, x), other, x)


def aside(linear: Any, reason: str, log: pytest.LogCaptureFixture) -> None:
    """SGLang's own code gets the loaded layer as it came, and fails here, because it needs a GPU."""
    before = {name: tensor.view(torch.uint8).clone() for name, tensor in linear.state_dict().items()}
    with pytest.raises(AssertionError, match="not compiled with CUDA"):
        made.finish(linear)
    after = linear.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name].view(torch.uint8), tensor), name
    (line,) = [record.getMessage() for record in log.records if record.name == plugin.__name__]
    assert line.startswith("SGLang's own kernel serves a linear: ")
    assert reason in line
    assert linear.scheme.kernel.autotune is None


def test_eight_bits_are_left_to_sglang(caplog: pytest.LogCaptureFixture) -> None:
    with made.rank_of(0, 1):
        linear = row(made.gptq(128, bits=8), 256, 128)
    aside(linear, "bits=8; only 4-bit weights are tuned", caplog)


def test_a_shard_of_mixed_groups_is_left_to_sglang(caplog: pytest.LogCaptureFixture) -> None:
    weight = weight_of(Layer(128, 512, group_size=128, zero_point=False))
    with made.rank_of(1, 2):
        linear = row(made.gptq(128, desc_act=True), 512, 128)
        made.load(linear, packers.gptq(weight, packers.shuffled_groups(512, 128)))
    aside(linear, "scales are torch.float16 [4, 128], expected [2, 128]", caplog)


def test_scales_that_are_not_finite_are_left_to_sglang(caplog: pytest.LogCaptureFixture) -> None:
    tensors = packers.awq_gemm(weight_of(Layer(128, 256)))
    with made.rank_of(0, 1):
        linear = row(made.awq(128), 256, 128)
        made.load(linear, {**tensors, "scales": tensors["scales"] * float("nan")})
    linear.scales.data.nan_to_num_(nan=float("inf"))
    aside(linear, "256 of 256 scales are NaN or infinite", caplog)


def test_the_log_says_what_serves(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, plugin.__name__)
    for seed in (1, 2):
        awq_linear(weight_of(Layer(128, 256), seed))
    lines = [record.getMessage() for record in caplog.records if record.name == plugin.__name__]
    assert lines == [f"autotune serves {Layer(128, 256)}; of its 13 buckets run 13 default"]


def test_an_sglang_with_another_signature_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def apply(self, layer, hidden):  # noqa: ARG001
        return hidden

    monkeypatch.setattr(AWQMarlinLinearKernel, "apply", apply)
    registered = {target: list(hooks) for target, hooks in HookRegistry._hooks.items()}
    plugin._register_once.cache_clear()
    plugin.register()
    assert registered == HookRegistry._hooks
    assert "autotune does not know this SGLang" in caplog.text
    assert "['self', 'layer', 'hidden']" in caplog.text
