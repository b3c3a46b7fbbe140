"""Random operands of a layer, with as many weight copies as it takes to read from memory every time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch

from autotune.layouts import PackedWeight, QuantizedWeight, random_weight
from autotune.layouts.packed import Layout, layout_of
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.device import Device
from autotune.values.errors import LayerError
from autotune.values.layer import Layer

_CACHE_MULTIPLE = 3
_ACTIVATION_BYTES = 8 << 20
_MOST_ACTIVATIONS = 16

_T = TypeVar("_T")


class Activation(NamedTuple):
    """What a call reads and writes besides its weight."""

    x: torch.Tensor
    out: torch.Tensor


@dataclass(frozen=True, slots=True)
class Operands:
    """One random weight, and equal copies of it whose bytes exceed three times the last cache.

    The copies are what `packed` makes of the weight, in the layout of the families that are to read it.
    `rotation` goes through the copies for ever. All who time calls one by one take the next copy from it, so
    that no one finds in the cache what another has just read.
    """

    layer: Layer
    device: Device
    weight: QuantizedWeight
    copies: tuple[Any, ...]
    layout: Layout
    rotation: Iterator[Any] = field(init=False, repr=False)
    _kept: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rotation", itertools.cycle(self.copies))

    @classmethod
    def random(cls, layer: Layer, device: Device, layout: Layout | None = None, seed: int = 0) -> Operands:
        """Operands on the device, the same for the same seed, in that layout or in the device's own.

        Raises:
            LayerError: the weight in the layout holds no tensors.
        """
        generator = torch.Generator(device.torch_name).manual_seed(seed)
        weight = random_weight(layer, generator)
        chosen = layout or layout_of(device.kind)
        return cls(layer, device, weight, _copies(weight, device, chosen), chosen)

    def in_layout(self, layout: Layout) -> Operands:
        """Operands of the same weight, with copies in another layout.

        Raises:
            LayerError: as `random`.
        """
        return replace(self, copies=_copies(self.weight, self.device, layout), layout=layout)

    def packed(self, weight: QuantizedWeight) -> Any:
        """Another weight of the layer in the layout of the copies."""
        return _packed(weight, self.layout)

    def activations(self, m: int) -> tuple[Activation, ...]:
        """Some x[m, k] with an out[m, n] each, which stay in the cache together.

        Where an x and an out lie in memory moves the time of a small kernel by over a percent on an H200,
        for as long as they lie there. Whoever times calls goes through all.
        """
        first = self._activation(m, 0)
        count = _ACTIVATION_BYTES // sum(tensor.nbytes for tensor in first)
        return (first, *(self._activation(m, seed) for seed in range(1, min(count, _MOST_ACTIVATIONS))))

    def _activation(self, m: int, seed: int) -> Activation:
        x = self.tokens(m, seed)
        return Activation(x, torch.empty((m, self.layer.n), dtype=x.dtype, device=x.device))

    def rotated(self, activations: Sequence[Activation]) -> tuple[Any, ...]:
        """As many copies as exceed three times the last cache with what each call touches.

        Of thousands of tokens x and out alone do, so that few copies time what all of them would. But a
        kernel may read its weight several times, for some tokens each time: so there are at least two copies,
        unless the weight itself exceeds three times the cache.
        """
        weight_bytes = _bytes(self.copies[0])
        touched = max(sum(tensor.nbytes for tensor in each) for each in activations)
        fewest = 1 if weight_bytes >= _CACHE_MULTIPLE * self.device.l2_bytes else 2
        return self.copies[: max(fewest, _copies_needed(weight_bytes, self.device, touched))]

    def tokens(self, m: int, seed: int, magnitude: float = 1.0) -> torch.Tensor:
        """x[m, k], normally distributed with the given standard deviation."""
        generator = torch.Generator(self.device.torch_name).manual_seed(seed)
        shape = (m, self.layer.k)
        x = torch.randn(shape, device=self.device.torch_name, generator=generator) * magnitude
        return x.to(TORCH_DTYPES[self.layer.dtype])

    def hard_weight(self, seed: int) -> QuantizedWeight:
        """Another weight, with what random ones hardly have: groups of equal nibbles, zeros of 0 and 15.

        A quarter of the groups have one nibble throughout, a quarter only 0 or only 15, and the others are
        those of `weight`; every zero is 0 or 15. So some groups are as large as groups can be, some vanish.
        """
        layer, device = self.layer, self.device.torch_name
        generator = torch.Generator(device).manual_seed(seed)

        def draw(high: int, *shape: int) -> torch.Tensor:
            return torch.randint(0, high, shape, dtype=torch.uint8, device=device, generator=generator)

        kind = draw(4, layer.n, layer.groups, 1)
        nibble, extreme = draw(16, *kind.shape), 15 * draw(2, *kind.shape)
        random = self.weight.q.view(layer.n, layer.groups, layer.group_size)
        q = torch.where(kind < 2, torch.where(kind == 0, nibble, extreme), random)
        zeros = 15 * draw(2, layer.groups, layer.n) if layer.zero_point else None
        return QuantizedWeight(layer, q.view(layer.n, layer.k), self.weight.scales, zeros)

    def once(self, name: str, make: Callable[[], _T]) -> _T:
        """What `make` returned when it was first asked for under this name, kept as long as the operands."""
        if name not in self._kept:
            self._kept[name] = make()
        kept: _T = self._kept[name]
        return kept


def _copies(weight: QuantizedWeight, device: Device, layout: Layout) -> tuple[Any, ...]:
    """Equal copies of the packed weight beyond three times the last cache."""
    first = _packed(weight, layout)
    bytes = _bytes(first)
    if not bytes:
        raise LayerError(
            f"pack of {layout.name} made {type(first).__name__} without tensors of {weight.layer};"
            " return its tensors"
        )
    return (first, *(_copy(first) for _ in range(_copies_needed(bytes, device) - 1)))


def _copies_needed(weight_bytes: int, device: Device, beside: int = 0) -> int:
    """Of a weight, so that all but one exceed three times the last cache, with so many bytes beside them."""
    return 1 + -(-max(0, _CACHE_MULTIPLE * device.l2_bytes - beside) // weight_bytes)


def _bytes(weight: Any) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(weight)}.values())


def _packed(weight: QuantizedWeight, layout: Layout) -> Any:
    made = layout.pack(weight)
    # A copy, because a layout may share tensors with the weight that the reference is computed from.
    return made if isinstance(made, PackedWeight) else deepcopy(made)


def _copy(weight: Any) -> Any:
    # A clone takes a fifth of the time of a deepcopy, and of small layers there are thousands.
    return weight.clone() if isinstance(weight, PackedWeight) else deepcopy(weight)


def _tensors(weight: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a tensor, a container, a dataclass or any other object with attributes."""
    if isinstance(weight, torch.Tensor):
        yield weight
        return
    if isinstance(weight, Mapping):
        parts = list(weight.values())
    elif isinstance(weight, (tuple, list)):
        parts = list(weight)
    elif is_dataclass(weight):
        parts = [getattr(weight, each.name) for each in fields(weight)]
    else:
        parts = list(getattr(weight, "__dict__", {}).values())
    for part in parts:
        yield from _tensors(part)
