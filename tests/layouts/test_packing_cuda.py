"""The packed layout of the CUDA families against a slow packer that follows its closed form."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.layouts import QuantizedWeight, pack, random_weight, unpack
from autotune.values.layer import Layer


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    group_size = draw(st.sampled_from([32, 64, 128, -1]))
    k = 8 * draw(st.integers(1, 20)) if group_size == -1 else group_size * draw(st.integers(1, 4))
    n = 8 * draw(st.integers(1, 20))
    return Layer(
        n,
        k,
        group_size=group_size,
        dtype=draw(st.sampled_from(["fp16", "bf16"])),
        zero_point=draw(st.booleans()),
    )


def weight_of(layer: Layer, seed: int) -> QuantizedWeight:
    return random_weight(layer, torch.Generator().manual_seed(seed))


def up(size: int, to: int) -> int:
    return (size + to - 1) // to * to


def slow_nibbles(weight: QuantizedWeight) -> list[int]:
    """All nibbles of qweight, each put where the closed form says that (n, k) goes."""
    layer = weight.layer
    rows, columns = up(layer.n, 64), up(layer.k, 64)
    nibbles = [0] * (rows * columns)
    for n in range(layer.n):
        for k in range(layer.k):
            block = (n // 64) * (columns // 64) + k // 64
            b, s, r = (n % 64) // 16, (k % 64) // 16, n % 16
            lane = 4 * (r % 8) + (k % 8) // 2
            v = (k % 2) + 2 * (r // 8) + 4 * ((k % 16) // 8)
            p = v // 2 + 4 * (v % 2)
            nibbles[block * 4096 + b * 1024 + lane * 32 + s * 8 + p] = int(weight.q[n, k])
    return nibbles


def nibbles_of(words: torch.Tensor) -> list[int]:
    return [(word >> (4 * i)) & 15 for word in words.flatten().tolist() for i in range(8)]


@settings(max_examples=25, deadline=None)
@given(layers(), st.integers(0, 2**31 - 1))
def test_weights_lie_where_the_closed_form_says(layer: Layer, seed: int) -> None:
    weight = weight_of(layer, seed)
    packed = pack(weight, "cuda")
    assert packed.qweight.dtype == torch.int32
    assert packed.qweight.is_contiguous()
    assert nibbles_of(packed.qweight) == slow_nibbles(weight)


@settings(max_examples=25, deadline=None)
@given(layers(), st.integers(0, 2**31 - 1))
def test_scales_and_zeros_lie_in_lane_order(layer: Layer, seed: int) -> None:
    """Element [group, n / 64, g, j] belongs to row g + 8 j of the 64; what pads them is zero."""
    weight = weight_of(layer, seed)
    packed = pack(weight, "cuda")
    groups = -(-up(layer.k, 64) // layer.group_size)
    blocks = up(layer.n, 64) // 64
    assert packed.scales.shape == (groups, blocks, 8, 8)
    assert packed.scales.is_contiguous()
    zeros = None if packed.zeros is None else nibbles_of(packed.zeros)
    assert (zeros is not None) == layer.zero_point
    for group in range(groups):
        for row in range(64 * blocks):
            g, j = row % 8, row % 64 // 8
            real = group < layer.groups and row < layer.n
            scale = weight.scales[group, row].item() if real else 0.0
            assert packed.scales[group, row // 64, g, j].item() == scale
            if zeros is not None:
                assert weight.zeros is not None
                zero = int(weight.zeros[group, row]) if real else 0
                assert zeros[(group * blocks + row // 64) * 64 + 8 * g + j] == zero


@settings(max_examples=60, deadline=None)
@given(layers(), st.integers(0, 2**31 - 1))
def test_there_and_back(layer: Layer, seed: int) -> None:
    weight = weight_of(layer, seed)
    again = unpack(pack(weight, "cuda"))
    assert again.layer == layer
    assert torch.equal(again.q, weight.q)
    assert torch.equal(again.scales, weight.scales)
    assert again.zeros is None if weight.zeros is None else torch.equal(again.zeros, weight.zeros)
