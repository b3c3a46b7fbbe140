"""What a kernel family is: a space of configs, and a plan that runs one of them.

A family is one Python file that ends in `FAMILY = ...`; the registry finds it in this folder, and in those of
AUTOTUNE_FAMILIES. It holds its tunables, its constraints with their reasons, its launch geometry and its
estimate of what a config takes. What a family must fulfil, `autotune.testing` checks.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from autotune.values.config import Config

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    import torch

    from autotune.jit.unit import Unit
    from autotune.layouts.packed import Layout
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

    A plan of a CPU may have `launch(m, x, qweight, scales, zeros, bias, out)` too: what `run` does, of
    addresses, 0 for what is not there, and without checks. Then models call that, which takes less time.

    A plan of a GPU may have `run_parts(sizes, x, weight, bias, out, workspace)`: what `run` does for a layer
    that is several linears, but out has the [m, size] of each one after the other. It is False if that cannot
    be, and then has done nothing.
    """

    def workspace_bytes(self, m: int) -> int:
        """Bytes of workspace that `run` needs for m tokens."""

    def run(
        self,
        x: torch.Tensor,
        weight: Any,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor | None,
    ) -> None:
        """out[m, n] = x[m, k] @ dequant(weight).T + bias[n], enqueued on the current stream of x's device.

        x and out are contiguous and of the layer's dtype, and `weight` is in the layout of the plan's family.
        `workspace` has at least `workspace_bytes(m)` bytes; its first COUNTER_BYTES are zero, are zero again
        after the run, and a CUDA one is used by one stream only.
        """


class Family(ABC):
    """A kernel source with tunables. Here is what families share: a subclass adds what is its own.

    Without more, there is nothing to compile, and every valid candidate is worth timing.
    """

    name: str
    kind: str
    """The kind of device that it runs on, "cuda" or "cpu"."""
    weight = "int4"
    """The kind of weight that it multiplies, as a scheme names it."""
    tunables: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    """By name the values that a config may have; without values `misfit` checks them."""
    deterministic = False
    """Whether a call gives the same bits at each run."""

    @functools.cached_property
    def layout(self) -> Layout:
        """How the weight lies that the family's plans read.

        A model's layer is packed once, so families that answer models read the layout of their kind of
        device; a kernel that is named by its users may have its own.
        """
        from autotune.layouts.packed import layout_of  # look-ups do without torch

        return layout_of(self.kind)

    @abstractmethod
    def source_hash(self) -> str:
        """Hash of all source that the family's kernels are made of."""

    @abstractmethod
    def candidates(self, problem: Problem, device: Device) -> Iterable[Config]:
        """The configs that the family considers for the problem, simplest first, whether or not they fit."""

    @abstractmethod
    def default(self, problem: Problem, device: Device) -> Config | None:
        """The valid config of the lowest estimate among those that may run untuned; None without any."""

    @abstractmethod
    def estimate(self, config: Config, problem: Problem, device: Device) -> float:
        """About how long a call of the valid config takes, in microseconds; positive.

        It is compared with those of other families, so it has to be of the same kind: the time of a call in a
        model, where another kernel goes before.
        """

    @abstractmethod
    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> Plan:
        """Make the config ready for the layer; `cubin` is the compiled `unit`, None when there is none.

        Raises:
            LaunchError: the driver refuses the cubin.
        """

    def cannot(self, problem: Problem, device: Device) -> str | None:  # noqa: ARG002
        """Why no config at all can do the problem on the device, or None."""
        stored = problem.layer.scheme.weight
        return None if stored == self.weight else f"it multiplies {self.weight} weights, not {stored}"

    def misfit(self, config: Config, problem: Problem, device: Device) -> str | None:  # noqa: ARG002
        """Why the config, whose tunables have allowed values, does not fit the problem or device, or None."""
        return None

    def unknown(self, config: Config) -> str | None:
        """Why the family has no such config, whatever the problem, or None when it has."""
        if tuple(config) != tuple(self.tunables):
            return f"its tunables are {', '.join(self.tunables) or 'none'}"
        for name, values in self.tunables.items():
            if values and config[name] not in values:
                return f"{name}={config[name]} is not one of {', '.join(map(str, values))}"
        return None

    def reject(self, config: Config, problem: Problem, device: Device) -> str | None:
        """Why the config is not valid for the problem on the device, or None when it is."""
        return self.unknown(config) or self.cannot(problem, device) or self.misfit(config, problem, device)

    def valid(self, problem: Problem, device: Device) -> list[Config]:
        """Every valid candidate, simplest first, whether or not it is worth timing."""
        if self.cannot(problem, device) is not None:
            return []
        candidates = self.candidates(problem, device)
        return [config for config in candidates if self.misfit(config, problem, device) is None]

    def space(self, problem: Problem, device: Device) -> list[Config]:
        """The valid configs worth timing, simplest first; empty when the family cannot do the problem."""
        return self.valid(problem, device)

    def order(self, config: Config, layer: Layer, device: Device) -> Hashable | None:  # noqa: ARG002
        """What fixes the order in which the products of a row are added, whatever the other rows.

        Configs of one order, also those of different families, give a row the same bits, with any number of
        tokens. None where the order depends on the number of tokens, or nobody knows.
        """
        return None

    def ordered(self, problem: Problem, device: Device) -> Iterable[Config]:  # noqa: ARG002
        """Valid configs that have an order, those of each that may be the fastest; worth timing or not."""
        return ()

    def config(self, *values: int) -> Config:
        """The config with these values, in the order of the tunables."""
        return Config(self.name, tuple(zip(self.tunables, values, strict=True)))

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit | None:  # noqa: ARG002
        """What to compile for the config, or None when it needs no compiler."""
        return None

    def launches(self, config: Config, problem: Problem, device: Device) -> tuple[Launch, ...]:  # noqa: ARG002
        """What a plan of the config enqueues of the unit's kernel for the problem; empty without a unit."""
        return ()
