"""Int4Linear and its op on the CPU family."""

from __future__ import annotations

import copy

import pytest
import torch
from runtime_tools import assert_is_linear, tokens_of, weight_of

from autotune.formats import awq_gemm
from autotune.runtime.linear import Int4Linear
from autotune.runtime.op import int4_linear
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.errors import AutotuneError, DeviceError, FormatError, LayerError
from autotune.values.layer import Layer

LAYER = Layer(136, 256, group_size=64)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("m", [1, 2, 5, 33, 200])
@pytest.mark.parametrize("with_bias", [False, True])
def test_output_is_the_dequantized_matmul(dtype: str, m: int, with_bias: bool) -> None:
    layer = Layer(136, 256, group_size=64, dtype=dtype)
    weight = weight_of(layer)
    bias = torch.linspace(-1, 1, layer.n).to(TORCH_DTYPES[dtype]) if with_bias else None
    linear = Int4Linear.from_awq(*awq_gemm.from_quantized(weight), bias)
    x = tokens_of((m, layer.k), TORCH_DTYPES[dtype])
    assert_is_linear(linear(x), weight, x, bias)


@pytest.mark.parametrize("shape", [(256,), (1, 256), (1, 1, 256), (2, 3, 256), (2, 3, 4, 256)])
def test_leading_dimensions_are_kept(shape: tuple[int, ...]) -> None:
    weight = weight_of(LAYER)
    x = tokens_of(shape, torch.float16)
    assert_is_linear(Int4Linear.from_quantized(weight)(x), weight, x)


@pytest.mark.parametrize("shape", [(0, 256), (2, 0, 256), (0, 0, 256)])
def test_no_tokens_give_an_empty_output(shape: tuple[int, ...]) -> None:
    out = Int4Linear.from_quantized(weight_of(LAYER))(torch.empty(shape, dtype=torch.float16))
    assert out.shape == (*shape[:-1], LAYER.n)
    assert out.dtype == torch.float16


def test_x_that_is_strided_or_not_aligned() -> None:
    weight = weight_of(LAYER)
    linear = Int4Linear.from_quantized(weight)
    for x in (
        tokens_of((256, 6), torch.float16).T,
        tokens_of((6, 512), torch.float16)[:, ::2],
        tokens_of((6 * 256 + 1,), torch.float16)[1:].view(6, 256),
        tokens_of((1, 256), torch.float16).expand(6, 256),
        tokens_of((3, 2, 256), torch.float16).transpose(0, 1),
    ):
        assert_is_linear(linear(x), weight, x)


def test_wrong_x_is_named() -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER))
    with pytest.raises(LayerError, match=r"torch.bfloat16.*torch.float16"):
        linear(torch.zeros(1, 256, dtype=torch.bfloat16))
    with pytest.raises(LayerError, match=r"\[3, 128\].*256"):
        linear(torch.zeros(3, 128, dtype=torch.float16))
    with pytest.raises(LayerError, match=r"\[\]"):
        linear(torch.zeros((), dtype=torch.float16))


def test_wrong_bias_is_named() -> None:
    with pytest.raises(FormatError, match=r"bias is \[7\], expected \[136\]"):
        Int4Linear.from_quantized(weight_of(LAYER), torch.zeros(7))


def test_bias_is_cast_to_the_dtype_of_the_layer() -> None:
    bias = torch.nn.Parameter(torch.linspace(-1, 1, LAYER.n))
    linear = Int4Linear.from_quantized(weight_of(LAYER), bias)
    assert linear.bias is not None
    assert torch.equal(linear.bias, bias.detach().half())
    assert not linear.bias.requires_grad


def test_the_result_has_no_grad_and_training_says_so() -> None:
    weight = weight_of(LAYER)
    linear = Int4Linear.from_quantized(weight)
    x = tokens_of((2, 256), torch.float16).requires_grad_()
    with pytest.raises(AutotuneError, match=r"model.eval\(\)"):
        linear(x)
    with torch.no_grad():
        assert not linear(x).requires_grad
    out = linear.eval()(x)
    assert not out.requires_grad
    assert_is_linear(out, weight, x)
    with torch.inference_mode():
        assert torch.equal(linear(x), out)


def test_state_dict_goes_from_one_linear_to_another() -> None:
    x = tokens_of((3, 256), torch.float16)
    one = Int4Linear.from_quantized(weight_of(LAYER, 1), torch.ones(LAYER.n))
    other = Int4Linear.from_quantized(weight_of(LAYER, 2), torch.zeros(LAYER.n))
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))
    assert set(one.state_dict()) == {"qweight", "scales", "zeros", "bias"}


def test_moves_that_keep_the_packing_are_allowed_and_others_change_nothing() -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER), torch.zeros(LAYER.n))
    x = tokens_of((3, 256), torch.float16)
    before = linear(x)
    assert linear.to("cpu").half().eval() is linear
    with pytest.raises(DeviceError, match="packed for cpu and cannot move to meta"):
        linear.to("meta")
    with pytest.raises(FormatError, match=r"torch.float16 and cannot become torch.bfloat16"):
        linear.to(torch.bfloat16)
    assert linear.bias is not None
    assert linear.bias.dtype == torch.float16
    assert torch.equal(linear(x), before)


def test_copies_are_independent() -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER))
    x = tokens_of((3, 256), torch.float16)
    before = linear(x)
    twin = copy.deepcopy(linear)
    linear.qweight.zero_()
    assert torch.equal(twin(x), before)
    assert not torch.equal(linear(x), before)


def test_repr_tells_layer_and_config() -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER))
    config = linear.plans.answers[0].config
    assert repr(linear) == f"Int4Linear({LAYER}, bias=False, config={config})"


def test_the_op_keeps_the_rules_of_torch() -> None:
    for layer, bias in (
        (LAYER, None),
        (Layer(136, 256, group_size=64, dtype="bf16", zero_point=False), torch.ones(136)),
    ):
        linear = Int4Linear.from_quantized(weight_of(layer), bias)
        buffers = (linear.qweight, linear.scales, linear.zeros, linear.bias)
        for shape in ((1, 256), (2, 3, 256), (0, 256)):
            x = tokens_of(shape, TORCH_DTYPES[layer.dtype])
            torch.library.opcheck(int4_linear, (x, *buffers, linear.plans.handle))


def test_one_traced_model_serves_every_m() -> None:
    weight = weight_of(LAYER)
    traced = torch.compile(
        Int4Linear.from_quantized(weight).eval(), backend="aot_eager", fullgraph=True, dynamic=True
    )
    for m in (2, 7, 65):
        x = tokens_of((m, 256), torch.float16)
        assert_is_linear(traced(x), weight, x)


def shuffled(k: int = 256) -> torch.Tensor:
    return torch.randperm(k, generator=torch.Generator().manual_seed(0)).int()


@pytest.mark.parametrize("shape", [(256,), (1, 256), (2, 3, 256), (0, 256)])
def test_columns_of_x_are_gathered(shape: tuple[int, ...]) -> None:
    weight, perm = weight_of(LAYER), shuffled()
    linear = Int4Linear.from_quantized(weight, perm=perm)
    x = tokens_of(shape, torch.float16)
    assert_is_linear(linear(x), weight, x[..., perm.long()])
    assert set(linear.state_dict()) == {"qweight", "scales", "zeros", "perm"}


@pytest.mark.parametrize("shape", [(3, 128), (3, 512), ()])
def test_an_x_of_another_size_is_named_and_not_gathered(shape: tuple[int, ...]) -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER), perm=shuffled())
    with pytest.raises(LayerError, match=r"expected \[\.\.\., 256\]"):
        linear(torch.zeros(shape, dtype=torch.float16))


def test_a_traced_model_gathers_too() -> None:
    weight, perm = weight_of(LAYER), shuffled()
    linear = Int4Linear.from_quantized(weight, perm=perm).eval()
    traced = torch.compile(linear, backend="aot_eager", fullgraph=True, dynamic=True)
    for m in (2, 65):
        x = tokens_of((m, 256), torch.float16)
        assert_is_linear(traced(x), weight, x[..., perm.long()])


def test_an_order_that_changes_nothing_is_dropped() -> None:
    assert Int4Linear.from_quantized(weight_of(LAYER), perm=torch.arange(256)).perm is None


@pytest.mark.parametrize("perm", [torch.zeros(256), torch.arange(128), torch.arange(1, 257)])
def test_what_is_no_order_is_named(perm: torch.Tensor) -> None:
    with pytest.raises(FormatError, match=r"expected each of 0 to 255 once"):
        Int4Linear.from_quantized(weight_of(LAYER), perm=perm)


def test_a_handle_that_nothing_holds_is_an_error() -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER))
    x = tokens_of((1, 256), torch.float16)
    with pytest.raises(LayerError, match=r"handle=.-1. names no layer"):
        int4_linear(x, linear.qweight, linear.scales, linear.zeros, None, "-1")
