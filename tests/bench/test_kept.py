"""Which operands are kept: those of a layer are made once, while the device has room for more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from autotune.bench import kept
from autotune.bench.health import free_share
from autotune.bench.kept import KeptOperands
from autotune.values.device import cpu_device, find_device
from autotune.values.layer import Layer

LAYERS = [Layer(n=64, k=128, group_size=64), Layer(n=128, k=64, group_size=64)]
DEVICE = replace(cpu_device(), l2_bytes=1 << 16)


def test_a_cpu_keeps_those_of_one_layer():
    operands = KeptOperands(DEVICE)
    first = operands.of(LAYERS[0])
    assert operands.of(LAYERS[0]) is first
    assert operands.of(LAYERS[1]).layer == LAYERS[1]
    again = operands.of(LAYERS[0])
    assert again is not first
    assert torch.equal(again.weight.q, first.weight.q)


def test_those_of_all_layers_are_kept_until_there_is_little_room(monkeypatch):
    free = 0.99
    monkeypatch.setattr(kept, "free_share", lambda _: free)
    operands = KeptOperands(DEVICE)
    first, second = (operands.of(layer) for layer in LAYERS)
    assert [operands.of(layer) for layer in LAYERS] == [first, second]
    free = 0.9
    operands.of(replace(LAYERS[0], n=192))
    assert operands.of(LAYERS[0]) is not first


@pytest.mark.gpu
def test_memory_in_use_is_not_free_and_what_torch_keeps_for_later_is():
    gpu = find_device("cuda")
    before = free_share(gpu)
    taken = torch.empty(gpu.memory_bytes // 8, dtype=torch.uint8, device="cuda")
    assert free_share(gpu) == pytest.approx(before - 1 / 8, abs=0.02)
    del taken
    assert free_share(gpu) == pytest.approx(before, abs=0.02)
