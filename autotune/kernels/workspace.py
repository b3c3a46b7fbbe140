"""Scratch memory for kernels: one workspace per stream, whose head is zeroed when it is made.

A kernel that splits k keeps counters in the head of its workspace and fp32 partials behind it, and leaves
the counters zero, so the next kernel needs no memset. That holds as long as no two kernels use a workspace
at once, which a stream guarantees for its own kernels: hence one workspace per stream, never one per device.

A CUDA graph breaks the rule, because it is replayed on any stream, beside kernels of the stream that it was
captured on. So a capture gets a workspace of its own, from the memory pool of the graph, and its zeroing is
the first thing that the graph does in each replay. After the capture the graph's pool keeps that memory;
holding the tensor as well only serves the further kernels of the same capture, so the latest is enough.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from autotune import _C

if TYPE_CHECKING:
    import torch

COUNTER_BYTES = 262144
"""The head of every workspace: one 4-byte counter per tile, zero between launches."""

_eager: dict[tuple[int, int], torch.Tensor] = {}
_captured: dict[tuple[int, int], tuple[int | None, torch.Tensor]] = {}
_of_thread = threading.local()


def workspace(device: torch.device, bytes: int) -> torch.Tensor | None:
    """uint8 of at least `bytes` for the current stream, or the current thread of a CPU; None for 0 bytes.

    Its first COUNTER_BYTES were zeroed when it was made. It is given out again to later calls of the same
    stream or thread; a larger one takes its place when it is too small. During a capture `device` must be
    the current one.
    """
    if bytes == 0:
        return None
    if device.type == "cpu":
        _of_thread.tensor = tensor = _grown(getattr(_of_thread, "tensor", None), device, bytes)
        return tensor
    import torch

    index = torch.cuda.current_device() if device.index is None else device.index
    stream = int(torch._C._cuda_getCurrentRawStream(index))
    key = (index, stream)
    if not torch.cuda.is_current_stream_capturing():
        _eager[key] = tensor = _grown(_eager.get(key), device, bytes)
        return tensor
    capture = _C.cuda_capture_id(stream)
    owner, held = _captured.get(key, (None, None))
    tensor = _grown(held if owner == capture else None, device, bytes)
    _captured[key] = capture, tensor
    return tensor


def _grown(held: torch.Tensor | None, device: torch.device, bytes: int) -> torch.Tensor:
    """`held` when it is large enough, else a new one of at least twice its size."""
    if held is not None and held.numel() >= bytes:
        return held
    import torch

    # A tensor made in inference mode could not be written to by torch's own kernels outside of it.
    with torch.inference_mode(False):
        size = max(bytes, 2 * held.numel() if held is not None else 0)
        tensor = torch.empty(size, dtype=torch.uint8, device=device)
        tensor[:COUNTER_BYTES].zero_()
    return tensor
