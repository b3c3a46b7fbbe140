"""What the CUDA families share: how a config runs a layer, the plan of a call, and what is worth timing.

A family's file has a `Geometry` and a `CudaFamily`, and little else.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from autotune import _C
from autotune.families.protocol import Family
from autotune.families.workspace import COUNTER_BYTES
from autotune.jit.sources import source_hash
from autotune.jit.unit import Unit
from autotune.values.scheme import GROUP_SIZES

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    import torch

    from autotune.families.protocol import Launch, Plan
    from autotune.layouts import PackedWeight
    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem

# A Hopper multiprocessor: its shared memory, and what each block takes of it besides its own.
SM90_SHARED_BYTES = 233472
SM90_BLOCK_BYTES = 1024

PART_COLUMNS = 8
"""Parts of a result are multiples of so many columns, so that no 16 bytes that a kernel stores are of two."""
_ELEMENT_BYTES = 2
"""Of x and out."""

Defines = tuple[tuple[str, int], ...]


class Geometry(ABC):
    """How one valid config runs a layer on a device; the constants of its device code are the same.

    `csrc/cuda/<family>/geometry.cu` exports them, and a test compares.
    """

    most_tokens: int = sys.maxsize
    """Of a launch; more tokens take several, one after the other."""

    def __init__(self, config: Config, layer: Layer, device: Device) -> None:
        self.config, self.layer, self.device = config, layer, device

    @abstractmethod
    def launch(self, tokens: int) -> Launch:
        """Of so many tokens, at most `most_tokens`."""

    @abstractmethod
    def estimate(self, m: int) -> float:
        """About how long a call of m tokens takes, in microseconds."""

    def defines(self) -> Defines:
        """What the source is compiled with, besides `layer_defines`."""
        return ()

    def launches(self, m: int) -> tuple[Launch, ...]:
        """Those of m tokens."""
        return tuple(self.launch(tokens) for _, tokens in parts(m, self.most_tokens))

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        """Bytes of workspace for m tokens."""
        return 0

    def misfit(self, m: int) -> str | None:  # noqa: ARG002
        """Why it cannot be, or None."""
        return None

    def pointless(self, m: int) -> str | None:  # noqa: ARG002
        """Why it is valid but not worth timing, or None."""
        return None


class CudaPlan:
    """A loaded kernel and its launches for one layer.

    Its parameters are x, the weight's tensors, bias and out, then `CudaFamily.scratch`, the number of tokens,
    n, k and the launch's own arguments. Where x comes by tensor copies, its number of rows follows it. A
    kernel that writes parts is also told where each part but the first begins, n where there is none.
    """

    def __init__(self, family: CudaFamily, geometry: Geometry, cubin: bytes) -> None:
        import torch

        layer = geometry.layer
        rows = geometry.launch(1).box_rows
        boxes = (layer.k, rows, layer.dtype == "bf16") if rows else None
        self._function = _C.CudaFunction(cubin, family.kernel, geometry.device.index, boxes)
        self._geometry, self._by_box, self._scratch = geometry, bool(rows), family.scratch
        self._most_tokens, self._index = geometry.most_tokens, geometry.device.index
        self._n, self._k = layer.n, layer.k
        self._x_bytes, self._out_bytes = _ELEMENT_BYTES * layer.k, _ELEMENT_BYTES * layer.n
        self._stream = torch._C._cuda_getCurrentRawStream
        self._launches: dict[int, tuple[Any, ...]] = {}
        self._most_parts, self._whole = family.most_parts, (layer.n,) * (family.most_parts - 1)
        self.workspace_bytes = geometry.workspace_bytes

    def run_parts(self, sizes: Sequence[int], x: torch.Tensor, *others: Any) -> bool:
        """`run` of x and the others, but in out the parts lie one after the other, [m, size] each.

        False if it cannot do that.
        """
        if len(sizes) > self._most_parts or len(x) > self._most_tokens:
            return False
        if any(size % PART_COLUMNS for size in sizes):
            return False
        begin = tuple(accumulate(sizes))[:-1]
        self.run(x, *others, begin=(*begin, *self._whole[len(begin) :]))
        return True

    def run(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor | None,
        *,
        begin: tuple[int, ...] = (),
    ) -> None:
        zeros = weight.zeros
        # Written out, because each call of a model comes by here.
        q, s = weight.qweight.data_ptr(), weight.scales.data_ptr()
        z, b = 0 if zeros is None else zeros.data_ptr(), 0 if bias is None else bias.data_ptr()
        at, to, m = x.data_ptr(), out.data_ptr(), x.shape[0]
        stream, most = self._stream(self._index), self._most_tokens
        for tokens in (m,) if m <= most else [tokens for _, tokens in parts(m, most)]:
            grid, threads, shared_bytes, programmatic, last = self._launches.get(tokens) or self._ready(
                tokens
            )
            if self._scratch:
                counters = 0 if workspace is None else workspace.data_ptr()
                behind = (counters + COUNTER_BYTES,) if self._scratch > 1 else ()
                last = (counters, *behind, *last)
            if self._whole:
                last = (*last, *(begin or self._whole))
            arguments = (at, tokens, q, s, z, b, to, *last) if self._by_box else (at, q, s, z, b, to, *last)
            self._function.launch(grid, threads, shared_bytes, stream, arguments, programmatic)
            at, to = at + tokens * self._x_bytes, to + tokens * self._out_bytes

    def _ready(self, tokens: int) -> tuple[Any, ...]:
        """The launch of so many tokens and its last arguments; kept, because a call has no time for it."""
        made = self._geometry.launch(tokens)
        last = (tokens, self._n, self._k, *made.arguments)
        ready = (made.grid, made.threads, made.shared_bytes, made.programmatic, last)
        return self._launches.setdefault(tokens, ready)


class CudaFamily(Family):
    """A CUDA kernel in one source of csrc/cuda, compiled for each config."""

    kind = "cuda"
    source: str
    """Of csrc/cuda, or an absolute path."""
    kernel: str
    """Its name in the source."""
    geometry: type[Geometry]
    scratch = 0
    """Pointers that the kernel gets to the workspace: none, to its head, also behind the counters."""
    most_parts = 1
    """The kernel can write the results of so many linears that are one layer, in a call of one launch."""
    hopper: str | None = None
    """What of sm_90 alone the kernel needs, if anything."""
    arch_suffix = ""
    worth_timing = math.inf
    """Times the lowest estimate, beyond which a config does not take part in a sweep."""

    def source_hash(self) -> str:
        return source_hash(self.source)

    def cannot(self, problem: Problem, device: Device) -> str | None:
        if self.hopper is not None and device.arch != "sm_90":
            return f"it needs {self.hopper} of sm_90, not {device.arch}"
        if problem.layer.dtype == "fp32":
            return "the CUDA kernels take fp16 and bf16, not fp32"
        return super().cannot(problem, device)

    def misfit(self, config: Config, problem: Problem, device: Device) -> str | None:
        return self.reject_shape(config) or self.geometry(config, problem.layer, device).misfit(problem.m)

    def reject_shape(self, config: Config) -> str | None:  # noqa: ARG002
        """Why no layer can have the config, or None; `candidates` has none such."""
        return None

    def valid(self, problem: Problem, device: Device) -> list[Config]:
        return [found.config for found in self._fitting(self.candidates(problem, device), problem, device)]

    def space(self, problem: Problem, device: Device) -> list[Config]:
        """The valid configs worth timing, simplest first; all of them if none is."""
        found = list(self._fitting(self.candidates(problem, device), problem, device))
        if self.worth_timing < math.inf:
            estimates = [each.estimate(problem.m) for each in found]
            most_us = self.worth_timing * min(estimates, default=0.0)
            return [each.config for each, us in zip(found, estimates, strict=True) if us <= most_us]
        worth = [each.config for each in found if each.pointless(problem.m) is None]
        return worth or [each.config for each in found]

    def defaults(self, problem: Problem, device: Device) -> Iterable[Config]:
        """The configs of which the default is one."""
        return self.candidates(problem, device)

    def default(self, problem: Problem, device: Device) -> Config | None:
        """The valid one of the lowest estimate of `defaults`, of equal ones the first."""
        found = self._fitting(self.defaults(problem, device), problem, device)
        best = min(found, key=lambda each: each.estimate(problem.m), default=None)
        return None if best is None else best.config

    def estimate(self, config: Config, problem: Problem, device: Device) -> float:
        return self.geometry(config, problem.layer, device).estimate(problem.m)

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit:
        defines = (*self.geometry(config, layer, device).defines(), *layer_defines(layer))
        return Unit(self.source, defines, device.arch + self.arch_suffix)

    def launches(self, config: Config, problem: Problem, device: Device) -> tuple[Launch, ...]:
        return self.geometry(config, problem.layer, device).launches(problem.m)

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> Plan:
        assert cubin is not None
        return CudaPlan(self, self.geometry(config, layer, device), cubin)

    def _fitting(self, configs: Iterable[Config], problem: Problem, device: Device) -> Iterator[Geometry]:
        if self.cannot(problem, device) is not None:
            return
        geometry, layer, m = self.geometry, problem.layer, problem.m
        for config in configs:
            found = geometry(config, layer, device)
            if found.misfit(m) is None:
                yield found


def layer_defines(layer: Layer) -> Defines:
    """GROUP (0 when one group spans k), ZERO_POINT and BF16."""
    group = layer.group_size if layer.group_size in GROUP_SIZES else 0
    return (("GROUP", group), ("ZERO_POINT", int(layer.zero_point)), ("BF16", int(layer.dtype == "bf16")))


def too_large(shared_bytes: int, device: Device) -> str | None:
    """Why a block cannot have so much shared memory, or None."""
    if shared_bytes > device.shared_bytes:
        return f"{shared_bytes} bytes of shared memory; a block has {device.shared_bytes}"
    return None


def scaled_weights(layer: Layer, split_k: int, unit: int) -> Hashable:
    """The order of sums where scaled weights are multiplied, 16 columns after the other in each slice of k.

    The slices, whose sums are added in their order, are whole units of columns, as equal as these allow.
    """
    units = ceil_div(layer.k, unit)
    return "scaled weights", tuple(unit * (units * rank // split_k) for rank in range(split_k))


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


def current_stream(index: int) -> int:
    """torch's current stream on the GPU, as the driver knows it."""
    import torch

    return int(torch._C._cuda_getCurrentRawStream(index))
