"""A weight in the layout that a kind of device reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from autotune.layer import Layer
from autotune.packing import cpu_layout, cuda_layout
from autotune.packing.quantized import QuantizedWeight


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """Tensors in the layout of `kind` ("cuda" or "cpu"); the layout's module says what each holds.

    Kernels may read a weight before the kernels ahead of them on the stream have ended. So it must be whole
    when the first call is enqueued, as what `pack` and `clone` return is.
    """

    layer: Layer
    kind: str
    qweight: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Every tensor of the weight."""
        kept = (self.qweight, self.scales, self.zeros)
        return tuple(tensor for tensor in kept if tensor is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def clone(self) -> PackedWeight:
        """A copy at other addresses."""
        zeros = self.zeros.clone() if self.zeros is not None else None
        return _complete(replace(self, qweight=self.qweight.clone(), scales=self.scales.clone(), zeros=zeros))


def pack(weight: QuantizedWeight, kind: str) -> PackedWeight:
    """The weight in the layout of `kind`, on the device where its tensors are."""
    pack_layout = cuda_layout.pack if kind == "cuda" else cpu_layout.pack
    return _complete(PackedWeight(weight.layer, kind, *pack_layout(weight)))


def unpack(packed: PackedWeight) -> QuantizedWeight:
    """The exact inverse of `pack`."""
    unpack_layout = cuda_layout.unpack if packed.kind == "cuda" else cpu_layout.unpack
    return unpack_layout(packed.layer, packed.qweight, packed.scales, packed.zeros)


def wait_written(tensor: torch.Tensor) -> None:
    """Wait until a GPU has done what is enqueued on the tensor's current stream."""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()


def _complete(weight: PackedWeight) -> PackedWeight:
    wait_written(weight.qweight)
    return weight
