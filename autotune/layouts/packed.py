"""A weight in the layout that a kind of device reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from autotune.layouts import cpu as cpu_layout
from autotune.layouts import cuda as cuda_layout
from autotune.schemes.int4 import TORCH_DTYPES, QuantizedWeight
from autotune.values.errors import LayerError
from autotune.values.layer import Layer

_LAYOUTS = {"cuda": cuda_layout, "cpu": cpu_layout}
"""By kind of device the layout of all families that run a model's layers there."""
_ALIGNMENT_BYTES = 16
"""Of the addresses from which CUDA kernels load vectors."""


# Not frozen, because each call of the op makes one, and frozen fields take it half a microsecond to set.
@dataclass(slots=True, eq=False)
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


@dataclass(frozen=True, slots=True)
class Form:
    """What the tensors of a packed weight of `layer` for devices of `kind` look like, and those beside it.

    `zeros` is None for a layer without; `dtype` is that of scales, bias and x.
    """

    layer: Layer
    kind: str
    qweight: tuple[int, ...]
    scales: tuple[int, ...]
    zeros: tuple[int, ...] | None
    bias: tuple[int, ...]
    dtype: torch.dtype
    zeros_dtype: torch.dtype

    def check(
        self,
        device: torch.device,
        qweight: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> None:
        """Check all that can be told without memory, which tensors in tracing do not have.

        Raises:
            LayerError: a tensor is missing, too many, not on `device`, or not contiguous and of the shape and
                dtype that a kernel reads; the message names it.
        """
        if (zeros is None) != (self.zeros is None):
            raise LayerError(f"zeros are {'missing' if zeros is None else 'given'} for {self.layer}")
        self._check("qweight", qweight, self.qweight, torch.int32, device)
        self._check("scales", scales, self.scales, self.dtype, device)
        if zeros is not None and self.zeros is not None:
            self._check("zeros", zeros, self.zeros, self.zeros_dtype, device)
        if bias is not None:
            self._check("bias", bias, self.bias, self.dtype, device)

    def _check(
        self,
        name: str,
        tensor: torch.Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if tensor.device != device:
            raise LayerError(f"x is on {device}, but {name} is on {tensor.device}; move one to the other")
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            held = f"{name} is {tensor.dtype} {list(tensor.shape)}"
            raise LayerError(f"{held}, expected {dtype} {list(shape)} for {self.layer} on {self.kind}")
        if not tensor.is_contiguous():
            raise LayerError(f"{name} has strides {list(tensor.stride())}; pass {name}.contiguous()")


@functools.cache
def form_of(layer: Layer, kind: str) -> Form:
    """The form of the layer's packed weight for devices of the kind."""
    layout = _LAYOUTS[kind]
    qweight, scales, zeros = layout.shapes(layer)
    grouped = zeros if layer.zero_point else None
    dtype = TORCH_DTYPES[layer.dtype]
    return Form(layer, kind, qweight, scales, grouped, (layer.n,), dtype, layout.ZEROS_DTYPE)


def check_memory(name: str, tensor: torch.Tensor) -> None:
    """Check that the tensor's elements lie in memory of its own, where a kernel may load vectors.

    Raises:
        LayerError: its storage was freed or made smaller, or it starts between the vectors of a GPU.
    """
    needed = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    held = tensor.untyped_storage().nbytes()
    if held < needed:
        raise LayerError(f"{name} needs {needed} bytes, but its storage has {held}; load its weights again")
    if tensor.is_cuda and tensor.data_ptr() % _ALIGNMENT_BYTES:
        raise LayerError(
            f"{name} starts at an address that {_ALIGNMENT_BYTES} does not divide; pass {name}.clone()"
        )


def pack(weight: QuantizedWeight, kind: str) -> PackedWeight:
    """The weight in the layout of `kind`, on the device where its tensors are."""
    return _complete(PackedWeight(weight.layer, kind, *_LAYOUTS[kind].pack(weight)))


def unpack(packed: PackedWeight) -> QuantizedWeight:
    """The exact inverse of `pack`."""
    layout = _LAYOUTS[packed.kind]
    weight: QuantizedWeight = layout.unpack(packed.layer, packed.qweight, packed.scales, packed.zeros)
    return weight


@dataclass(frozen=True, slots=True)
class Layout:
    """How the weight lies that a family's plans read: `pack` makes it of the canonical weight.

    Families of one layout share the weight. Those that may run a model's layers have that of `layout_of`.
    """

    name: str
    pack: Callable[[QuantizedWeight], Any]


@functools.cache
def layout_of(kind: str) -> Layout:
    """The layout of the layers of models on devices of the kind, "cuda" or "cpu"."""
    return Layout(kind, functools.partial(pack, kind=kind))


def wait_written(tensor: torch.Tensor) -> None:
    """Wait until a GPU has done what is enqueued on the tensor's current stream."""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()


def _complete(weight: PackedWeight) -> PackedWeight:
    wait_written(weight.qweight)
    return weight
