"""Shards of a weight for tensor parallelism, also where one starts in the middle of a group."""

from __future__ import annotations

import pytest
import torch
from runtime_tools import assert_is_linear, tokens_of, weight_of

from autotune.layouts import dequantize
from autotune.runtime.linear import Int4Linear
from autotune.schemes.int4 import shard
from autotune.values.errors import LayerError
from autotune.values.layer import Layer, shard_layer


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize(
    ("k", "group_size", "of", "shard_group"),
    [
        (256, 64, 2, 64),  # at a group
        (384, 128, 4, 32),  # 96: in the middle of one
        (320, 64, 2, 32),  # 160
        (1376 * 8, 128, 8, 32),  # Llama-7B's down projection on eight devices
        (1376 * 8, 128, 2, 128),
        (1376 * 8, 128, 4, 64),
        (256, 128, 4, 64),  # half a group each
        (96, -1, 2, 48),  # one group stays one
        (384, -1, 4, 96),
        (256, 128, 16, 16),  # less than the least group size, inside one
    ],
)
def test_shards_of_k_are_the_weight_in_parts(
    k: int, group_size: int, of: int, shard_group: int, zero_point: bool
) -> None:
    weight = weight_of(Layer(16, k, group_size=group_size, zero_point=zero_point))
    parts = [shard(weight, 1, rank, of) for rank in range(of)]
    layer = Layer(16, k // of, group_size=shard_group, zero_point=zero_point)
    assert {part.layer for part in parts} == {layer} == {shard_layer(weight.layer, 1, of)}
    assert torch.equal(torch.cat([dequantize(part) for part in parts], dim=1), dequantize(weight))
    assert all(tensor.is_contiguous() for part in parts for tensor in (part.q, part.scales))


@pytest.mark.parametrize(("n", "of"), [(1376, 2), (1376 * 8, 8), (24, 3)])
def test_shards_of_n_are_the_weight_in_parts(n: int, of: int) -> None:
    weight = weight_of(Layer(n, 128, group_size=64))
    parts = [shard(weight, 0, rank, of) for rank in range(of)]
    assert {part.layer for part in parts} == {Layer(n // of, 128, group_size=64)}
    assert torch.equal(torch.cat([dequantize(part) for part in parts]), dequantize(weight))


def test_one_group_of_all_k_stays_one_along_n() -> None:
    weight = weight_of(Layer(32, 96, group_size=-1))
    assert shard(weight, 0, 1, 2).layer == Layer(16, 96, group_size=96)


@pytest.mark.parametrize(
    ("dim", "of", "words"),
    [
        (1, 3, "k=1280 does not split into 3 shards"),
        (0, 0, "n=24 does not split into 0 shards"),
        (0, 2, "n=12 is not a positive multiple of 8"),
        (1, 32, "k=1280 in 32 shards of 40: no group size of 32 or more divides a shard"),
    ],
)
def test_shards_that_no_kernel_takes_are_named(dim: int, of: int, words: str) -> None:
    with pytest.raises(LayerError, match=words):
        shard_layer(Layer(24, 1280, group_size=128), dim, of)


def test_a_rank_that_is_none_is_named() -> None:
    with pytest.raises(LayerError, match="rank=2 is not one of 2 shards"):
        shard(weight_of(Layer(16, 256, group_size=128)), 1, 2, 2)


@pytest.mark.parametrize(
    ("n", "k", "dim", "of"), [(1376, 128, 0, 1), (40, 1376 * 8, 1, 8), (1376 * 2, 128, 0, 2), (72, 384, 1, 4)]
)
@pytest.mark.parametrize("m", [0, 1, 3, 40])
def test_outputs_of_odd_shards(n: int, k: int, dim: int, of: int, m: int, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "none.db"))
    weight = weight_of(Layer(n, k, group_size=128))
    part = shard(weight, dim, of - 1, of)
    x = tokens_of((m, part.layer.k), torch.float16)
    assert_is_linear(Int4Linear.from_quantized(part)(x), part, x)
