"""The CPU layout, against an unpacker that follows its description one weight at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.layouts import pack, random_weight, unpack
from autotune.values.layer import Layer


def _q_of(words: torch.Tensor, row: int, column: int) -> int:
    word = int(words[row // 16, column // 8, row % 16]) & 0xFFFFFFFF
    weight = column % 8
    nibble = weight // 2 if weight % 2 == 0 else 4 + weight // 2
    signed = (word >> (4 * nibble)) & 15
    return (signed - 16 if signed >= 8 else signed) + 8


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    group_size = draw(st.sampled_from((32, 64, 128, -1)))
    k = 8 * draw(st.integers(1, 20)) if group_size == -1 else group_size * draw(st.integers(1, 3))
    return Layer(
        n=8 * draw(st.integers(1, 9)),
        k=k,
        group_size=group_size,
        dtype=draw(st.sampled_from(("fp16", "bf16", "fp32"))),
        zero_point=draw(st.booleans()),
    )


@settings(max_examples=40, deadline=None)
@given(layer=layers(), seed=st.integers(0, 2**31))
def test_every_weight_is_where_the_layout_says(layer: Layer, seed: int) -> None:
    weight = random_weight(layer, torch.Generator().manual_seed(seed))
    packed = pack(weight, "cpu")
    blocks = -(-layer.n // 16)
    assert packed.qweight.shape == (blocks, layer.k // 8, 16)
    assert packed.scales.shape == (blocks, layer.groups, 16)
    found = [[_q_of(packed.qweight, row, column) for column in range(layer.k)] for row in range(layer.n)]
    assert found == weight.q.tolist()
    for row in range(blocks * 16):
        scales = packed.scales[row // 16, :, row % 16]
        if row >= layer.n:
            assert not scales.any()
            continue
        assert torch.equal(scales, weight.scales[:, row])
        if weight.zeros is not None:
            assert packed.zeros is not None
            assert torch.equal(packed.zeros[row // 16, :, row % 16], weight.zeros[:, row])
    assert (packed.zeros is None) == (weight.zeros is None)


@settings(max_examples=60, deadline=None)
@given(layer=layers(), seed=st.integers(0, 2**31))
def test_unpack_is_the_exact_inverse(layer: Layer, seed: int) -> None:
    weight = random_weight(layer, torch.Generator().manual_seed(seed))
    packed = pack(weight, "cpu")
    before = packed.qweight.clone()
    back = unpack(packed)
    assert torch.equal(packed.qweight, before)
    assert back.layer == layer
    assert torch.equal(back.q, weight.q)
    assert torch.equal(back.scales, weight.scales)
    if weight.zeros is None:
        assert back.zeros is None
    else:
        assert back.zeros is not None
        assert torch.equal(back.zeros, weight.zeros)


@pytest.mark.parametrize("zero_point", [False, True])
def test_tensors_are_contiguous_and_of_the_stated_types(zero_point: bool) -> None:
    layer = Layer(n=40, k=256, dtype="bf16", zero_point=zero_point)
    packed = pack(random_weight(layer, torch.Generator().manual_seed(0)), "cpu")
    assert packed.qweight.dtype == torch.int32
    assert packed.scales.dtype == torch.bfloat16
    assert all(tensor.is_contiguous() for tensor in packed.tensors)
    assert (packed.zeros is not None) == zero_point
