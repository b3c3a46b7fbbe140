"""Operands of several layers, kept while the device has room: a sweep comes to each layer more than once."""

from __future__ import annotations

from autotune.bench.busy import settle
from autotune.bench.health import free_share, release
from autotune.bench.operands import Operands
from autotune.layouts.packed import Layout
from autotune.values.device import Device
from autotune.values.layer import Layer

_FREE = 0.95
"""Share of the device's memory that must be free for operands to be kept beside the next ones. What is kept
is little, so that it takes no room from a problem, nor from a server that starts beside a daemon."""


class KeptOperands:
    """Random operands of the layers that are asked for; while a layer's are kept, they are not made again."""

    def __init__(self, device: Device, layout: Layout | None = None) -> None:
        self._device, self._layout = device, layout
        self._kept: dict[Layer, Operands] = {}

    def of(self, layer: Layer) -> Operands:
        """Those of the layer; where there is little room, all others go first.

        Raises:
            LayerError: the weight in the layout holds no tensors.
        """
        if not self._kept:
            settle(self._device)
        if layer not in self._kept:
            if free_share(self._device) < _FREE:
                self._kept.clear()
                release(self._device)
            self._kept[layer] = Operands.random(layer, self._device, self._layout)
        return self._kept[layer]
