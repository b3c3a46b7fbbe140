"""GPTQ zeros as each writer packs them, above all zeros of 0, against whole numbers put together by hand."""

from __future__ import annotations

from typing import Any

import packers
import pytest
import torch
from packers import Word, as_they_are, less_ones, summed
from runtime_tools import weight_of

from autotune.formats import detect, read
from autotune.layouts import QuantizedWeight
from autotune.values.errors import FormatError
from autotune.values.layer import Layer

LAYER = Layer(64, 96, group_size=32)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}
GPTQMODEL = {**GPTQ, "checkpoint_format": "gptq", "meta": {"quantizer": ["optimum:1.2", "gptqmodel:7.7.0"]}}
AUTO_ROUND = {**GPTQ, "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}


def clamped(zeros: list[int]) -> int:
    """auto-round since 0.16 makes a zero of 0 one of 1."""
    return sum(max(zero - 1, 0) << 4 * i for i, zero in enumerate(zeros))


def masked(zeros: list[int]) -> int:
    """Each nibble by itself, modulo 16."""
    return sum((zero - 1) % 16 << 4 * i for i, zero in enumerate(zeros))


def spilled(zeros: list[int]) -> int:
    """AutoGPTQ and GPTQ-for-LLaMa: a zero of 0 becomes 32 bits of ones, shifted and or'ed into the word."""
    word = 0
    for i, zero in enumerate(zeros):
        word |= (zero - 1) % 2**32 << 4 * i
    return word % 2**32


def weight_with(zeros: torch.Tensor | None) -> QuantizedWeight:
    weight = weight_of(LAYER)
    return QuantizedWeight(LAYER, weight.q, weight.scales, weight.zeros if zeros is None else zeros)


def many_zeros_of_0() -> QuantizedWeight:
    """Zeros among which 0 and 1 are frequent, alone, side by side, and at both ends of a word."""
    drawn = torch.randint(0, 16, (LAYER.groups, LAYER.n), generator=torch.Generator().manual_seed(0))
    drawn[drawn > 11] = 0
    drawn[0, :8], drawn[0, 8:16] = 0, torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])
    return weight_with(drawn.byte())


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, as_they_are),
        ({**GPTQMODEL, "checkpoint_format": "gptq_v2"}, as_they_are),
        (GPTQMODEL, less_ones),
        ({**GPTQMODEL, "meta": {"quantizer": "GPTQModel:1.0.0"}}, less_ones),
        (AUTO_ROUND, less_ones),
        (AUTO_ROUND, summed),
        ({**GPTQ, "provider": "auto-round", "autoround_version": "0.9"}, summed),
        ({**GPTQ, "autoround_version": "0.5"}, summed),
        ({**AUTO_ROUND, "packing_format": "auto_round:gptqmodel"}, as_they_are),
        ({**AUTO_ROUND, "packing_format": "auto_round:exllamav2"}, as_they_are),
        (GPTQ, masked),
        ({**GPTQ, "meta": {"quantizer": ["optimum:1.20", "auto_gptq:0.7.1"]}}, masked),
        ({**GPTQ, "meta": None}, masked),
    ],
)
def test_every_writer_gets_its_zeros_back(config: dict[str, Any], word: Word) -> None:
    weight = many_zeros_of_0()
    assert torch.equal(read(packers.gptq_with(weight, word), detect(config)).weight.zeros, weight.zeros)


def test_a_zero_that_was_clamped_is_1_and_moves_no_other() -> None:
    weight = many_zeros_of_0()
    zeros = read(packers.gptq_with(weight, clamped), detect(AUTO_ROUND)).weight.zeros
    assert torch.equal(zeros, weight.zeros.clamp(min=1))


@pytest.mark.parametrize("config", [GPTQ, {**GPTQ, "meta": {"quantizer": "auto_gptq:0.7.1"}}])
def test_zeros_that_autogptq_overwrote_are_read_as_its_kernels_read_them(config: dict[str, Any]) -> None:
    weight = many_zeros_of_0()
    zeros = read(packers.gptq_with(weight, spilled), detect(config)).weight.zeros
    for kept, found in zip(weight.zeros.view(-1, 8).tolist(), zeros.view(-1, 8).tolist(), strict=True):
        first = kept.index(0) if 0 in kept else 8
        assert found == kept[:first] + [0] * (8 - first)


@pytest.mark.parametrize("config", [GPTQ, GPTQMODEL, AUTO_ROUND, {**GPTQ, "checkpoint_format": "gptq_v2"}])
@pytest.mark.parametrize("nibbles", [7, 8])
def test_symmetric_zeros_are_of_either_version(config: dict[str, Any], nibbles: int) -> None:
    tensors = packers.gptq_with(
        weight_with(torch.full((LAYER.groups, LAYER.n), nibbles, dtype=torch.uint8)), as_they_are
    )
    assert read(tensors, detect({**config, "sym": True})).weight.zeros is None


@pytest.mark.parametrize(
    ("config", "nibbles", "words"),
    [
        (GPTQ, 8, 'stored as 8, which GPTQ v1 reads as 9, .*"sym": true .* checkpoint_format to gptq_v2'),
        (GPTQMODEL, 8, "stored as 8, which GPTQ v1 reads as 9"),
        (AUTO_ROUND, 8, "stored as 8, which GPTQ v1 reads as 9"),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, 7, "stored as 7, which GPTQ v2 reads as 7, .* to gptq$"),
    ],
)
def test_zeros_that_nobody_means_need_sym(config: dict[str, Any], nibbles: int, words: str) -> None:
    tensors = packers.gptq_with(
        weight_with(torch.full((LAYER.groups, LAYER.n), nibbles, dtype=torch.uint8)), as_they_are
    )
    with pytest.raises(FormatError, match=words):
        read(tensors, detect({**config, "sym": None}))
    assert read(tensors, detect({**config, "sym": False})).weight.zeros is not None
    tensors["qzeros"][0, 0] += 1
    assert read(tensors, detect({**config, "sym": None})).weight.zeros is not None
