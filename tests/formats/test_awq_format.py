"""The AutoAWQ "gemm" layout against a slow unpacker that follows its closed form element by element."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.formats import awq_gemm
from autotune.layouts import dequantize, random_weight
from autotune.values.errors import FormatError, LayerError
from autotune.values.layer import Layer

REVERSED = (0, 4, 1, 5, 2, 6, 3, 7)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    group_size = draw(st.sampled_from([32, 64, 128, -1]))
    k = 8 * draw(st.integers(1, 12)) if group_size == -1 else group_size * draw(st.integers(1, 3))
    n = 8 * draw(st.integers(1, 9))
    return Layer(
        n,
        k,
        group_size=group_size,
        dtype=draw(st.sampled_from(["fp16", "bf16", "fp32"])),
        zero_point=draw(st.booleans()),
    )


def weight_of(layer: Layer, seed: int = 0):
    return random_weight(layer, torch.Generator().manual_seed(seed))


def nibble(words: torch.Tensor, row: int, column: int) -> int:
    """The value of a column by the closed form (word[row, column >> 3] >> 4 rev[column & 7]) & 15."""
    word = int(words[row, column >> 3]) & 0xFFFFFFFF
    return (word >> (4 * REVERSED[column & 7])) & 15


@settings(max_examples=40, deadline=None)
@given(layers(), st.integers(0, 2**31 - 1))
def test_from_quantized_follows_the_closed_form(layer: Layer, seed: int) -> None:
    weight = weight_of(layer, seed)
    qweight, qzeros, scales = awq_gemm.from_quantized(weight)
    assert qweight.shape == (layer.k, layer.n // 8)
    assert qzeros.shape == (layer.groups, layer.n // 8)
    assert qweight.is_contiguous()
    assert qzeros.is_contiguous()
    q = [[nibble(qweight, row, column) for row in range(layer.k)] for column in range(layer.n)]
    assert q == weight.q.tolist()
    zeros = [[nibble(qzeros, row, column) for column in range(layer.n)] for row in range(layer.groups)]
    expected = weight.zeros.tolist() if weight.zeros is not None else [[8] * layer.n] * layer.groups
    assert zeros == expected
    assert torch.equal(scales, weight.scales)


@settings(max_examples=40, deadline=None)
@given(layers(), st.integers(0, 2**31 - 1))
def test_to_quantized_follows_the_closed_form(layer: Layer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    words = {"dtype": torch.int32, "generator": generator}
    qweight = torch.randint(-(2**31), 2**31, (layer.k, layer.n // 8), **words)
    qzeros = torch.randint(-(2**31), 2**31, (layer.groups, layer.n // 8), **words)
    scales = weight_of(layer, seed).scales
    weight = awq_gemm.to_quantized(qweight, qzeros, scales)
    assert weight.layer == Layer(layer.n, layer.k, group_size=layer.group_size, dtype=layer.dtype)
    assert weight.zeros is not None
    assert weight.q.is_contiguous()
    assert weight.zeros.is_contiguous()
    for column in range(layer.n):
        assert weight.q[column].tolist() == [nibble(qweight, row, column) for row in range(layer.k)]
        groups = range(layer.groups)
        assert weight.zeros[:, column].tolist() == [nibble(qzeros, row, column) for row in groups]


@settings(max_examples=60, deadline=None)
@given(layers(), st.integers(0, 2**31 - 1))
def test_there_and_back(layer: Layer, seed: int) -> None:
    weight = weight_of(layer, seed)
    tensors = awq_gemm.from_quantized(weight)
    again = awq_gemm.to_quantized(*tensors)
    assert torch.equal(dequantize(again), dequantize(weight))
    assert all(torch.equal(a, b) for a, b in zip(awq_gemm.from_quantized(again), tensors, strict=True))


def test_tensors_that_are_not_contiguous_are_read_as_they_look() -> None:
    weight = weight_of(Layer(64, 128, group_size=64))
    qweight, qzeros, scales = awq_gemm.from_quantized(weight)
    strided = [tensor.T.contiguous().T for tensor in (qweight, qzeros, scales)]
    assert torch.equal(awq_gemm.to_quantized(*strided).q, weight.q)
    assert torch.equal(awq_gemm.to_quantized(*strided).scales, weight.scales)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, z, s: (q.to(torch.int64), z, s), ["qweight", "int64", "int32"]),
        (lambda q, z, s: (q[0], z, s), ["qweight", "[8]", "[k, n/8]"]),
        (lambda q, z, s: (q, z.to(torch.int16), s), ["qzeros", "int16", "int32", "[2, 8]"]),
        (lambda q, z, s: (q, z[:1], s), ["qzeros", "[1, 8]", "[2, 8]"]),
        (lambda q, z, s: (q, z, s.to(torch.float64)), ["scales", "float64", "float16"]),
        (lambda q, z, s: (q, z, s[:, :8]), ["scales", "[2, 8]", "k=128", "n=64"]),
        (lambda q, z, s: (q, z, torch.cat([s, s[:1]])), ["scales", "[3, 64]", "k=128"]),
        (lambda q, z, s: (q, z, s[:0]), ["scales", "[0, 64]"]),
        (lambda q, z, s: (q, z, s * float("nan")), ["128 of 128 scales", "NaN"]),
    ],
)
def test_wrong_tensors_are_named(change, words: list[str]) -> None:
    tensors = change(*awq_gemm.from_quantized(weight_of(Layer(64, 128, group_size=64))))
    with pytest.raises(FormatError) as caught:
        awq_gemm.to_quantized(*tensors)
    assert all(word in str(caught.value) for word in words)


def test_a_group_size_that_no_kernel_takes_is_named() -> None:
    qweight = torch.zeros((96, 8), dtype=torch.int32)
    qzeros = torch.zeros((2, 8), dtype=torch.int32)
    with pytest.raises(LayerError, match="group_size=48"):
        awq_gemm.to_quantized(qweight, qzeros, torch.ones((2, 64), dtype=torch.float16))
