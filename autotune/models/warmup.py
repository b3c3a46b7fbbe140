"""Pays before the first request what the first calls of a process would pay.

A GPU's first calls make its context, load the modules of torch's matmul and of the tuned kernels, reserve
memory and workspaces, and run at an idle clock. A CPU's first calls start threads and fetch weights that were
read from a file but never touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.bench.busy import keep_busy
from autotune.models.tuned import linears_of
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.counts import counted
from autotune.values.device import find_device
from autotune.values.layer import bucket_of

if TYPE_CHECKING:
    from autotune.families.protocol import Plan
    from autotune.runtime.linear import Int4Linear
    from autotune.runtime.plans import LayerPlans
    from autotune.values.device import Device
    from autotune.values.layer import Layer

_SETTLE_S = {"cuda": 0.5, "cpu": 0.05}
_LARGE_BYTES = 4 << 20
_MATMUL_SIZE = 256
_MATMUL_DTYPES = {
    "cuda": (torch.float16, torch.bfloat16),
    "cpu": (torch.float32, torch.bfloat16),
}


@dataclass(frozen=True)
class WarmupReport:
    """What `warmup` did: on which devices, the seconds of each part, and how much of the model it ran.

    The parts are `context` (with the first memory), `matmul` (torch's), `kernels` (the model's) and `clock`.
    `kernels` counts the distinct plans that ran, `linears` the linears whose weights were read.
    """

    devices: tuple[str, ...]
    seconds: Mapping[str, float]
    kernels: int
    linears: int

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.3f} s" for part, seconds in self.seconds.items())
        ran = f"{counted(self.kernels, 'kernel')} on {counted(self.linears, 'linear')}"
        return f"warmed {', '.join(self.devices)}: {ran} ({parts})"


def warmup(
    device: str = "auto", model: torch.nn.Module | None = None, tokens: Iterable[int] = (1, 16, 512)
) -> WarmupReport:
    """Make a device, and the tuned linears of a loaded model on it, ready for requests; waits for the end.

    For the buckets that cover `tokens`, every kernel of the model's `Int4Linear`s runs on a weight of its own
    and random tokens; every such linear runs at least for the smallest bucket, so that its weight is read.
    What is made for a stream is made for the current one. Then the device works until its clock settles, half
    a second at most. The model, its outputs and the state of torch's random numbers stay as they are.

    `auto` is wherever the model's linears are, or without any a GPU if there is one; with a named device,
    linears elsewhere are left alone.

    Raises:
        DeviceError: there is no such device.
        LayerError: a number of tokens is not positive.
    """
    ms = sorted({max(m, bucket_of(m)) for m in tokens}, reverse=True)
    linears = [] if model is None else linears_of(model)
    if device == "auto" and linears:
        devices = list(dict.fromkeys(linear.plans.device for linear in linears))
    else:
        devices = [find_device(device)]
        linears = [linear for linear in linears if linear.plans.device == devices[0]]
    clock = _Stopwatch(devices)
    with torch.no_grad():
        clock.time("context", _first_memory)
        clock.time("matmul", _first_matmuls)
        kernels = _Kernels(linears, ms)
        clock.time("kernels", kernels.run_on)
        clock.time("clock", lambda target: keep_busy(target, _SETTLE_S[target.kind]))
    names = tuple(target.torch_name for target in devices)
    return WarmupReport(names, clock.seconds, len(kernels.ran), len(linears) if ms else 0)


class _Stopwatch:
    """Times a part on every device, until all that it enqueued has ended."""

    def __init__(self, devices: list[Device]) -> None:
        self._devices = devices
        self.seconds: dict[str, float] = {}

    def time(self, part: str, work: Callable[[Device], object]) -> None:
        started = time.perf_counter()
        for device in self._devices:
            work(device)
            if device.kind == "cuda":
                torch.cuda.synchronize(device.index)
        self.seconds[part] = time.perf_counter() - started


class _Kernels:
    """Runs all numbers of tokens on the first linear of a layer, and the fewest on its others."""

    def __init__(self, linears: list[Int4Linear], ms: list[int]) -> None:
        self._linears, self._ms = linears, ms
        self._layers: set[LayerPlans] = set()
        self.ran: set[Plan] = set()

    def run_on(self, device: Device) -> None:
        generator = torch.Generator(device.torch_name).manual_seed(0)
        for linear in self._linears:
            if linear.plans.device == device:
                for m in self._due(linear.plans):
                    linear.forward(_tokens(linear.layer, m, generator))
                    self.ran.add(linear.plans.plan(m))

    def _due(self, plans: LayerPlans) -> list[int]:
        """Numbers that share a plan too: one that calls torch's matmul has other kernels for each."""
        if plans in self._layers:
            return self._ms[-1:]
        self._layers.add(plans)
        return self._ms


def _tokens(layer: Layer, m: int, generator: torch.Generator) -> torch.Tensor:
    """Random x[m, k] by a generator of our own: the process's random numbers stay as they are."""
    x = torch.randn((m, layer.k), generator=generator, device=generator.device)
    return x.to(TORCH_DTYPES[layer.dtype])


def _first_memory(device: Device) -> None:
    """Make the context, and let torch's allocator reserve its first small and its first large segment."""
    for size in (1, _LARGE_BYTES):
        torch.zeros(size, dtype=torch.uint8, device=device.torch_name)


def _first_matmuls(device: Device) -> None:
    """Make the handles and load the modules of torch's matmul, with a bias and without."""
    for dtype in _MATMUL_DTYPES[device.kind]:
        a = torch.zeros(_MATMUL_SIZE, _MATMUL_SIZE, dtype=dtype, device=device.torch_name)
        torch.nn.functional.linear(a, a)
        torch.nn.functional.linear(a, a, a[0])
