"""The families that exist: every module that defines FAMILY, and the kernels of `autotune.kernel`.

Those kernels are seen by those only who name them: they never run for a layer that did not ask for them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Collection
from typing import TYPE_CHECKING

import autotune.families
from autotune.jit.sources import digest
from autotune.values.errors import AutotuneError, ConfigError, DeviceError

if TYPE_CHECKING:
    from autotune.families.external import ExternalFamily
    from autotune.families.protocol import Family
    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Problem
    from autotune.values.record import Record, Trial

    _Defaults = dict[Family, tuple[float, Config]]

_named: dict[str, ExternalFamily] = {}
"""Families that only who names them sees."""

_NEAR, _FAR = 1.25, 2.0
"""Times the lowest estimate, from which on a family takes part with its default alone, or not at all."""


@functools.cache
def families() -> dict[str, Family]:
    """Every family that answers models, by name: autotune's own and those of AUTOTUNE_FAMILIES.

    Raises:
        ConfigError: a file of AUTOTUNE_FAMILIES does not import, or brings a name that is taken.
    """
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(autotune.families.__path__):
        try:
            family = getattr(importlib.import_module(f"autotune.families.{module.name}"), "FAMILY", None)
        except Exception as error:
            raise ConfigError(f"family file {module.name}.py does not import: {error}") from error
        if family is not None and found.setdefault(family.name, family) is not family:
            raise ConfigError(f"family file {module.name}.py brings the name {family.name}, which is taken")
    return dict(sorted(found.items()))


def register(kernel: ExternalFamily) -> None:
    """Have the kernel found by its name; the same function of the same file takes its own place.

    Raises:
        ConfigError: another kernel or a family has the name.
    """
    other = _named.get(kernel.name)
    if kernel.name in families() or (other is not None and other.origin != kernel.origin):
        whose = "autotune's own" if other is None else f"that of {other.origin}"
        raise ConfigError(f"kernel name {kernel.name} of {kernel.origin} is {whose}; give another with name=")
    _named[kernel.name] = kernel


def families_of(device: Device, names: Collection[str] | None = None) -> list[Family]:
    """The families of these names that run on the device's kind; without names, all of autotune's own."""
    known = families() if names is None else {**_named, **families()}
    chosen = (family for name, family in known.items() if names is None or name in names)
    return [family for family in chosen if family.kind == device.kind]


def family_of(config: Config) -> Family:
    """The family that the config names.

    Raises:
        ConfigError: no family has that name.
    """
    found = families().get(config.family) or _named.get(config.family)
    if found is None:
        known = ", ".join((*families(), *_named))
        raise ConfigError(f"config {config}: family is one of {known}")
    return found


def why_unknown(config: Config) -> str | None:
    """Why no problem has such a config here, be it for its family or its tunables; None when there is one."""
    try:
        reason = family_of(config).unknown(config)
    except ConfigError as error:
        return str(error)
    return None if reason is None else f"config {config}: {reason}"


def kernel_hash(config: Config, problem: Problem, device: Device) -> str:
    """Names what the config runs for the problem: the unit's content and its launches, in 16 hex digits each.

    Without a unit it is the hash of the family's source.

    Raises:
        ConfigError: no family has that name, or the config is not in the problem's space on the device.
    """
    check(config, problem, device)
    family = family_of(config)
    unit = family.unit(config, problem.layer, device)
    if unit is None:
        return family.source_hash()
    return f"{unit.key[:16]}-{digest(family.launches(config, problem, device))[:16]}"


def is_current(record: Record, device: Device) -> bool:
    """Whether the code of today makes the record's kernel on the device.

    Of a record of another device model only the unit has to be the same: the launch depends on the device.
    """
    return why_stale(record, device) is None


def why_stale(record: Record, device: Device) -> str | None:
    """Why the record is not current, in one phrase; None when it is."""
    try:
        now = kernel_hash(record.config, record.problem, device)
    except ConfigError as error:
        return f"the record's {error}"
    then = record.source_hash
    if record.device != device.name:
        then, now = (kernel.partition("-")[0] for kernel in (then, now))
    return None if then == now else f"the record is of another kernel ({_short(then)}, now {_short(now)})"


def would_repeat(trial: Trial, device: Device) -> bool:
    """Whether the code of today makes the kernel that the trial ran on the device."""
    try:
        return trial.source_hash == kernel_hash(trial.config, trial.problem, device)
    except AutotuneError:
        return False


def _short(kernel: str) -> str:
    """A kernel's name for reading: half of the unit's, half of the launches'."""
    return "-".join(part[:8] for part in kernel.split("-"))


def check(config: Config, problem: Problem, device: Device) -> None:
    """Raise ConfigError with the reason when the config is not in the problem's space on the device."""
    reason = family_of(config).reject(config, problem, device)
    if reason is not None:
        raise ConfigError(f"config {config} cannot run {problem} on {device.name}: {reason}")


def candidates(problem: Problem, device: Device, names: Collection[str] | None = None) -> list[Config]:
    """`space`, the default config first.

    Raises:
        DeviceError: no family of the device can do the problem, or none of these names.
    """
    defaults = _defaults(problem, device, names)
    default = _least(defaults, problem, device)
    return [default, *(config for config in _space(defaults, problem, device) if config != default)]


def space(problem: Problem, device: Device, names: Collection[str] | None = None) -> list[Config]:
    """The configs worth timing: every one of each family's space, or of those of these names.

    Of autotune's own families one whose default is estimated to take a quarter longer than the quickest takes
    part with its default alone, and one whose default takes twice as long not at all.
    """
    return _space(_defaults(problem, device, names), problem, device)


def default_config(problem: Problem, device: Device, names: Collection[str] | None = None) -> Config:
    """What runs when nothing is stored: of the families' defaults that of the lowest estimate.

    Raises:
        DeviceError: no family of the device can do the problem, or none of these names.
    """
    return _least(_defaults(problem, device, names), problem, device)


def _least(defaults: _Defaults, problem: Problem, device: Device) -> Config:
    if not defaults:
        raise DeviceError(f"no kernel family on {device.name} can do {problem}")
    return min(defaults.values(), key=lambda default: default[0])[1]


def _space(defaults: _Defaults, problem: Problem, device: Device) -> list[Config]:
    own = families()
    least_us = min((us for family, (us, _) in defaults.items() if family.name in own), default=0.0)
    configs: list[Config] = []
    for family, (us, default) in defaults.items():
        if family.name not in own or us <= _NEAR * least_us:
            configs += family.space(problem, device)
        elif us <= _FAR * least_us:
            configs.append(default)
    return configs


def _defaults(problem: Problem, device: Device, names: Collection[str] | None) -> _Defaults:
    """Of each family that can do the problem its default, and what that is estimated to take."""
    found = {family: family.default(problem, device) for family in families_of(device, names)}
    return {
        family: (family.estimate(config, problem, device), config)
        for family, config in found.items()
        if config is not None
    }
