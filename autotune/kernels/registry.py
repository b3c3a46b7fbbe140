"""The families that exist: every module of this folder that defines FAMILY."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

import autotune.kernels
from autotune.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from autotune.config import Config
    from autotune.device import Device
    from autotune.kernels.family import Family
    from autotune.layer import Problem


@functools.cache
def families() -> dict[str, Family]:
    """Every family by name."""
    modules = (
        importlib.import_module(f"autotune.kernels.{module.name}")
        for module in pkgutil.iter_modules(autotune.kernels.__path__)
    )
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}


def families_of(device: Device) -> list[Family]:
    """The families that run on the device's kind."""
    return [family for family in families().values() if family.kind == device.kind]


def family_of(config: Config) -> Family:
    """The family that the config names.

    Raises:
        ConfigError: no family has that name.
    """
    try:
        return families()[config.family]
    except KeyError:
        raise ConfigError(f"config {config}: family is one of {', '.join(families())}") from None


def check(config: Config, problem: Problem, device: Device) -> None:
    """Raise ConfigError with the reason when the config is not in the problem's space on the device."""
    reason = family_of(config).reject(config, problem, device)
    if reason is not None:
        raise ConfigError(f"config {config} cannot run {problem} on {device.name}: {reason}")


def space(problem: Problem, device: Device) -> list[Config]:
    """Every valid config of every family."""
    return [config for family in families_of(device) for config in family.space(problem, device)]


def default_config(problem: Problem, device: Device) -> Config:
    """What runs when nothing is stored: the first family, by name, whose heuristic claims the problem.

    Raises:
        DeviceError: no family of the device can do the problem.
    """
    for family in families_of(device):
        config = family.default(problem, device)
        if config is not None:
            return config
    raise DeviceError(f"no kernel family on {device.name} can do {problem}")
