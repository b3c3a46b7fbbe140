"""What all families share: the check of tunables, and a space of the candidates that are valid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING

from autotune.values.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from autotune.families.protocol import Launch, Plan
    from autotune.jit.unit import Unit
    from autotune.layouts.packed import Layout
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem


class BaseFamily(ABC):
    """A family, of which a subclass says what is its own: it has no compiler, and the layout of its kind."""

    name: str
    kind: str
    tunables: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    """By name the values that a config may have; without values `misfit` checks them."""

    @property
    def layout(self) -> Layout:
        """How the weight lies that the family's plans read."""
        from autotune.layouts.packed import layout_of  # look-ups do without torch

        return layout_of(self.kind)

    @abstractmethod
    def source_hash(self) -> str:
        """Hash of all source that the family's kernels are made of."""

    @abstractmethod
    def candidates(self, problem: Problem, device: Device) -> Iterable[Config]:
        """The configs that the family considers for the problem, simplest first, valid or not."""

    @abstractmethod
    def default(self, problem: Problem, device: Device) -> Config | None:
        """The valid config that runs untuned; None without any."""

    @abstractmethod
    def estimate(self, config: Config, problem: Problem, device: Device) -> float:
        """About how long a call of the valid config takes, in microseconds; positive."""

    @abstractmethod
    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> Plan:
        """Make the config ready for the layer; `cubin` is the compiled `unit`."""

    def cannot(self, problem: Problem, device: Device) -> str | None:  # noqa: ARG002
        """Why no config at all can do the problem on the device, or None."""
        return None

    def misfit(self, config: Config, problem: Problem, device: Device) -> str | None:  # noqa: ARG002
        """Why the config, whose tunables are allowed, does not fit the problem or the device, or None."""
        return None

    def reject(self, config: Config, problem: Problem, device: Device) -> str | None:
        """Why the config is not valid for the problem on the device, or None when it is."""
        if tuple(config) != tuple(self.tunables):
            return f"its tunables are {', '.join(self.tunables) or 'none'}"
        for name, values in self.tunables.items():
            if values and config[name] not in values:
                return f"{name}={config[name]} is not one of {', '.join(map(str, values))}"
        return self.cannot(problem, device) or self.misfit(config, problem, device)

    def valid(self, problem: Problem, device: Device) -> list[Config]:
        """Every candidate that is valid, simplest first, whether or not it is worth timing."""
        if self.cannot(problem, device) is not None:
            return []
        candidates = self.candidates(problem, device)
        return [config for config in candidates if self.misfit(config, problem, device) is None]

    def space(self, problem: Problem, device: Device) -> list[Config]:
        """The valid configs worth timing, simplest first: all of them."""
        return self.valid(problem, device)

    def config(self, *values: int) -> Config:
        """The config with these values, in the order of the tunables."""
        return Config(self.name, tuple(zip(self.tunables, values, strict=True)))

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit | None:  # noqa: ARG002
        """None: there is nothing to compile."""
        return None

    def launches(self, config: Config, problem: Problem, device: Device) -> tuple[Launch, ...]:  # noqa: ARG002
        """Empty: there is no unit."""
        return ()
