"""Scratch memory for kernels: one workspace per stream, whose head is zeroed when it is made.

A kernel that splits k keeps counters in the head of its workspace and fp32 partials behind it, and leaves
the counters zero, so the next kernel needs no memset. That holds as long as no two kernels use a workspace
at once, which a stream guarantees for its own kernels: hence one workspace per stream, never one per device.

A CUDA graph breaks the rule, because it is replayed on any stream, beside kernels of the stream that it was
captured on. So a capture gets a workspace of its own, from the memory pool of the graph, and its zeroing is
the first thing that the graph does in each replay. After the capture the graph's pool keeps that memory;
holding the tensor as well only serves the further kernels of the same capture, so the latest is enough.

Inductor's graph trees, `torch.compile(mode="reduce-overhead")`, refuse memory of their pool that anybody
holds after a capture. But all graphs of a tree manager share memory, so no two of them run at once, and one
workspace serves them all: made outside of the pool, zeroed once, and kept for as long as the manager lives.
"""

from __future__ import annotations

import functools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from autotune import _C

if TYPE_CHECKING:
    from typing import TypeGuard

    import torch

COUNTER_BYTES = 262144
"""The head of every workspace: one 4-byte counter per tile, zero between launches."""

_eager: dict[tuple[int, int], torch.Tensor] = {}
_captured: dict[tuple[int, int], tuple[int | None, torch.Tensor]] = {}
# By manager and stream. Graphs that were recorded with a smaller one go on to use it.
_of_trees: WeakKeyDictionary[object, dict[int, list[torch.Tensor]]] = WeakKeyDictionary()
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
        held = getattr(_of_thread, "tensor", None)
        _of_thread.tensor = tensor = held if _fits(held, bytes) else _zeroed(device, _size(held, bytes))
        return tensor
    import torch

    index = torch.cuda.current_device() if device.index is None else device.index
    stream = int(torch._C._cuda_getCurrentRawStream(index))
    if torch.cuda.is_current_stream_capturing():
        return _of_capture(index, stream, bytes)
    held = _eager.get((index, stream))
    if not _fits(held, bytes):
        _eager[index, stream] = held = _apart(index, _size(held, bytes))
        held.record_stream(torch.cuda.current_stream(index))
    return held


def _of_capture(index: int, stream: int, bytes: int) -> torch.Tensor:
    import torch

    capture = _C.cuda_capture_id(stream)
    manager = _trees_that_record(index, capture)
    if manager is not None:
        made = _of_trees.setdefault(manager, {}).setdefault(stream, [])
        last = made[-1] if made else None
        if not _fits(last, bytes):
            made.append(_apart(index, _size(last, bytes)))
        return made[-1]
    owner, held = _captured.get((index, stream), (None, None))
    held = held if owner == capture else None
    if not _fits(held, bytes):
        held = _zeroed(torch.device("cuda", index), _size(held, bytes))
        _captured[index, stream] = capture, held
    return held


def _trees_that_record(index: int, capture: int | None) -> object | None:
    """The tree manager of this thread on the GPU, if its stream is in the capture."""
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    # Read where the trees keep it, because their own function would make one.
    containers = getattr(getattr(trees, "local", None), "tree_manager_containers", {})
    manager: Any = containers[index].tree_manager if index in containers else None
    ours = manager is not None and _C.cuda_capture_id(manager.stream.cuda_stream) == capture
    return manager if ours else None


def _fits(held: torch.Tensor | None, bytes: int) -> TypeGuard[torch.Tensor]:
    return held is not None and held.numel() >= bytes


def _size(held: torch.Tensor | None, bytes: int) -> int:
    """At least twice what is too small."""
    return bytes if held is None else max(bytes, 2 * held.numel())


def _zeroed(device: torch.device, bytes: int) -> torch.Tensor:
    import torch

    # A tensor made in inference mode could not be written to by torch's own kernels outside of it.
    with torch.inference_mode(False):
        tensor = torch.empty(bytes, dtype=torch.uint8, device=device)
        tensor[:COUNTER_BYTES].zero_()
    return tensor


def _apart(index: int, bytes: int) -> torch.Tensor:
    """One that is ready for any stream, and that no memory pool in force on this thread or stream owns.

    Graph trees and `torch.cuda.use_mem_pool` take all that their thread or its stream allocates, and a
    capture what its stream does.
    """
    import torch

    def make() -> torch.Tensor:
        # A new thread is on the first GPU, and would make a context there when it leaves the stream.
        torch.cuda.set_device(index)
        stream = _stream_apart(index)
        with torch.cuda.stream(stream):
            tensor = _zeroed(torch.device("cuda", index), bytes)
        stream.synchronize()
        return tensor

    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(make).result()


@functools.cache
def _stream_apart(index: int) -> torch.cuda.Stream:
    """A stream of high priority: torch gives plain ones out again and again, to graph trees too."""
    import torch

    return torch.cuda.Stream(index, priority=-1)
