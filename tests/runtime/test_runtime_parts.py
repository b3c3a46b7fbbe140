"""A linear that is several: its result in parts, whoever looks on."""

from __future__ import annotations

import pytest
import torch
from runtime_tools import tokens_of, weight_of
from torch.fx.experimental.proxy_tensor import make_fx

from autotune.runtime.linear import Int4Linear
from autotune.values.errors import LayerError
from autotune.values.layer import Layer

LAYER, SIZES = Layer(72, 128, group_size=64), [40, 24, 8]


@pytest.fixture
def linear() -> Int4Linear:
    return Int4Linear.from_quantized(weight_of(LAYER))


@pytest.mark.parametrize("shape", [(LAYER.k,), (3, LAYER.k), (2, 3, LAYER.k), (0, LAYER.k)])
def test_parts_are_the_columns(linear: Int4Linear, shape: tuple[int, ...]) -> None:
    x = tokens_of(shape, torch.float16)
    for part, columns in zip(linear.parts(x, SIZES), linear(x).split(SIZES, -1), strict=True):
        assert torch.equal(part, columns)


@pytest.mark.parametrize("sizes", [[40, 24], [1000, 8], [-8, 80], [72, 8]])
def test_other_sizes_are_refused(linear: Int4Linear, sizes: list[int]) -> None:
    with pytest.raises(LayerError, match=r"parts of \[.*\] columns are not the 72 of"):
        linear.parts(tokens_of((3, LAYER.k), torch.float16), sizes)


def test_hooks_see_one_call_with_one_result(linear: Int4Linear) -> None:
    x = tokens_of((3, LAYER.k), torch.float16)
    expected = [2 * part for part in linear.parts(2 * x, SIZES)]
    linear.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    linear.register_forward_hook(lambda *call: 2 * call[-1])
    assert all(map(torch.equal, linear.parts(x, SIZES), expected))


def test_a_forward_that_was_put_in_its_place_is_called(linear: Int4Linear) -> None:
    x, before = tokens_of((3, LAYER.k), torch.float16), linear.forward
    expected = [-part for part in linear.parts(x, SIZES)]
    linear.forward = lambda x: -before(x)  # type: ignore[method-assign]
    assert all(map(torch.equal, linear.parts(x, SIZES), expected))


def test_who_traces_or_transforms_sees_the_op(linear: Int4Linear) -> None:
    x = tokens_of((2, 3, LAYER.k), torch.float16)
    expected = linear.parts(x, SIZES)
    traced = make_fx(lambda x: list(linear.parts(x, SIZES)))(x)
    assert torch.ops.autotune.int4_linear.default in {node.target for node in traced.graph.nodes}
    compiled = torch.compile(lambda x: linear.parts(x, SIZES), fullgraph=True, backend="aot_eager")
    for found in (traced(x), compiled(x), torch.func.vmap(lambda x: linear.parts(x, SIZES))(x)):
        assert all(map(torch.equal, found, expected))
