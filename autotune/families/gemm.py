"""What the CUDA families share: compile-time defines of a layer, pointers, and the workspace's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.values.scheme import GROUP_SIZES

if TYPE_CHECKING:
    import torch

    from autotune.values.device import Device
    from autotune.values.layer import Layer

# A Hopper multiprocessor: its shared memory, and what each block takes of it besides its own.
SM90_SHARED_BYTES = 233472
SM90_BLOCK_BYTES = 1024


def layer_defines(layer: Layer) -> tuple[tuple[str, int], ...]:
    """GROUP (0 when one group spans k), ZERO_POINT and BF16."""
    group = layer.group_size if layer.group_size in GROUP_SIZES else 0
    return (("GROUP", group), ("ZERO_POINT", int(layer.zero_point)), ("BF16", int(layer.dtype == "bf16")))


def reject_layer(layer: Layer) -> str | None:
    """Why no CUDA family can do the layer, or None."""
    if layer.dtype == "fp32":
        return "the CUDA kernels take fp16 and bf16, not fp32"
    return None


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def parts(count: int, most: int) -> list[tuple[int, int]]:
    """Start and length of what is done at once when at most `most` of `count` are."""
    if count <= most:
        return [(0, count)]
    return [(start, min(most, count - start)) for start in range(0, count, most)]


def pointer(tensor: torch.Tensor | None) -> int:
    """Device address of the first element, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def current_stream(device: Device) -> int:
    """torch's current stream on the device, as the driver knows it."""
    import torch

    return int(torch._C._cuda_getCurrentRawStream(device.index))
