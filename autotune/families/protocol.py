"""What a kernel family is: a space of configs, and a plan that runs one of them.

A family is one Python file in this folder that ends in `FAMILY = ...`; the registry finds it. It holds its
tunables, its constraints with their reasons, its launch geometry and its estimate of what a config takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from autotune.jit.unit import Unit
    from autotune.layouts import PackedWeight
    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is launched, besides its pointers and the sizes m, n and k.

    `programmatic` lets it start before the kernel ahead has ended. `arguments` are what else it is told, and
    `box_rows` the most rows of x that one tensor copy fetches, 0 where there are no such copies.
    """

    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    programmatic: bool
    arguments: tuple[int, ...] = ()
    box_rows: int = 0


class Plan(Protocol):
    """One config made ready for one layer on one device: running it compiles and looks up nothing.

    A plan of a CPU needs no workspace, and has `launch(m, x, qweight, scales, zeros, bias, out)` too: what
    `run` does, of addresses, 0 for what is not there, and without its checks.
    """

    def workspace_bytes(self, m: int) -> int:
        """Bytes of workspace that `run` needs for m tokens."""

    def run(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor | None,
    ) -> None:
        """out[m, n] = x[m, k] @ dequant(weight).T + bias[n], enqueued on the current stream of x's device.

        x and out are contiguous and of the layer's dtype. `workspace` has at least `workspace_bytes(m)`
        bytes; its first COUNTER_BYTES are zero, are zero again after the run, and a CUDA one is used by one
        stream only.
        """


class Family(Protocol):
    """A kernel source with tunables."""

    name: str
    kind: str
    """The kind of device that it runs on, "cuda" or "cpu"."""

    def source_hash(self) -> str:
        """Hash of all source that the family's kernels are made of."""

    def reject(self, config: Config, problem: Problem, device: Device) -> str | None:
        """Why the config is not in the problem's space on the device, or None when it is."""

    def space(self, problem: Problem, device: Device) -> list[Config]:
        """The valid configs worth timing, simplest first; empty when the family cannot do the problem."""

    def default(self, problem: Problem, device: Device) -> Config | None:
        """The valid config of the lowest estimate among those that the family considers; None without any."""

    def estimate(self, config: Config, problem: Problem, device: Device) -> float:
        """About how long a call of the valid config takes, in microseconds; positive.

        It is compared with those of other families, so it has to be of the same kind: the time of a call in a
        model, where another kernel goes before.
        """

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit | None:
        """What to compile for the config, or None when it needs no compiler."""

    def launches(self, config: Config, problem: Problem, device: Device) -> tuple[Launch, ...]:
        """What a plan of the config enqueues of the unit's kernel for the problem; empty without a unit."""

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> Plan:
        """Make the config ready for the layer; `cubin` is the compiled `unit`, None when there is none.

        Raises:
            LaunchError: the driver refuses the cubin.
        """
