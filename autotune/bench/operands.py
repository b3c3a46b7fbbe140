"""Random operands of a layer, with as many weight copies as it takes to read from memory every time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from autotune.device import Device
from autotune.layer import Layer
from autotune.packing import PackedWeight, QuantizedWeight, pack, random_weight
from autotune.packing.quantized import TORCH_DTYPES

_CACHE_MULTIPLE = 3


@dataclass(frozen=True, slots=True)
class Operands:
    """One random weight, and equal copies of it whose bytes exceed three times the last cache.

    `rotation` goes through the copies for ever. All who time calls one by one take the next copy from it, so
    that no one finds in the cache what another has just read.
    """

    layer: Layer
    device: Device
    weight: QuantizedWeight
    copies: tuple[PackedWeight, ...]
    rotation: Iterator[PackedWeight] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rotation", itertools.cycle(self.copies))

    @classmethod
    def random(cls, layer: Layer, device: Device, seed: int = 0) -> Operands:
        """Operands on the device, the same for the same seed."""
        generator = torch.Generator(device.torch_name).manual_seed(seed)
        weight = random_weight(layer, generator)
        first = pack(weight, device.kind)
        count = 1 + -(-_CACHE_MULTIPLE * device.l2_bytes // first.nbytes)
        return cls(layer, device, weight, (first, *(first.clone() for _ in range(count - 1))))

    def tokens(self, m: int, seed: int, magnitude: float = 1.0) -> torch.Tensor:
        """x[m, k], normally distributed with the given standard deviation."""
        generator = torch.Generator(self.device.torch_name).manual_seed(seed)
        shape = (m, self.layer.k)
        x = torch.randn(shape, device=self.device.torch_name, generator=generator) * magnitude
        return x.to(TORCH_DTYPES[self.layer.dtype])
