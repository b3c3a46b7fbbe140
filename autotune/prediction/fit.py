"""A fit: what the timed configs of a device model say beyond the families' estimates, and its file.

It is as good as the estimates and the kernels that it was made with. So it keeps some of both for each
family, its probes, and a family where they are others today goes without a fit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autotune.families import registry
from autotune.prediction.forest import Forest
from autotune.store.rows import problem_of, problem_row
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.errors import AutotuneError, DatabaseError
from autotune.values.layer import Problem

_FORMAT = 1
_LARGEST_FILE = 16 << 20
_ALIKE = 1e-6
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, AutotuneError)


Size = tuple[int, int]
"""n and k of a layer."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What is expected to be the fastest: by m and size the places of some `configs`, best first."""

    configs: tuple[Config, ...]
    sizes: tuple[Size, ...]
    places: Mapping[int, Mapping[Size, tuple[int, ...]]]

    @classmethod
    def of(cls, fastest: Mapping[int, Mapping[Size, Sequence[Config]]]) -> Choices:
        """Of configs by m and size, in which each size has every m."""
        configs = sorted({each for sizes in fastest.values() for own in sizes.values() for each in own})
        places = {config: place for place, config in enumerate(configs)}
        numbered = {
            m: {size: tuple(places[config] for config in own) for size, own in sizes.items()}
            for m, sizes in fastest.items()
        }
        sizes = sorted({size for own in fastest.values() for size in own})
        return cls(tuple(configs), tuple(sizes), numbered)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a family's kernel and estimate of a config were when the fit was made."""

    problem: Problem
    config: Config
    kernel: str
    estimate_us: float

    @classmethod
    def of(cls, problem: Problem, config: Config, device: Device) -> Probe:
        """As they are today.

        Raises:
            ConfigError: the config cannot run the problem.
        """
        family = registry.family_of(config)
        kernel = registry.kernel_hash(config, problem, device)
        return cls(problem, config, kernel, family.estimate(config, problem, device))

    def holds(self, device: Device) -> bool:
        """Whether both are the same today."""
        try:
            today = Probe.of(self.problem, self.config, device)
        except AutotuneError:
            return False
        alike = abs(today.estimate_us - self.estimate_us) <= _ALIKE * self.estimate_us
        return alike and today.kernel == self.kernel


@dataclass(frozen=True, slots=True)
class FamilyFit:
    """Of one family: the log of measured time over estimate, by its tunables and problem.

    `spread` is the measured time over the predicted one, of layers that the fit had not seen: what a tenth
    of them fell below, and what a tenth exceeded.
    """

    tunables: tuple[str, ...]
    probes: tuple[Probe, ...]
    spread: tuple[float, float]
    forest: Forest


@dataclass(frozen=True, slots=True)
class Fit:
    """Of one device model; `timings` and `layers` count what it was made from."""

    device: str
    arch: str
    timings: int
    layers: int
    families: Mapping[str, FamilyFit]
    choices: Choices


def write(fit: Fit, path: Path) -> None:
    """Write the file whole or not at all.

    Raises:
        DatabaseError: it cannot be written.
    """
    row = {
        "format": _FORMAT,
        "device": fit.device,
        "arch": fit.arch,
        "timings": fit.timings,
        "layers": fit.layers,
        "choices": _choices_row(fit.choices),
        "families": {name: _family_row(family) for name, family in sorted(fit.families.items())},
    }
    waiting = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting.write_text(json.dumps(row) + "\n", encoding="utf-8")
        waiting.replace(path)
    except OSError as error:
        raise DatabaseError(
            f"fit {path} cannot be written: {error.strerror}; give a folder with --out"
        ) from None


def read(path: Path, device: Device) -> Fit | None:
    """The fit of the file; None when there is no such file, or it is of another device model.

    Raises:
        DatabaseError: the file does not read.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DatabaseError(
                f"fit {path} is larger than {_LARGEST_FILE >> 20} MiB; run autotune fit again"
            )
        row: Any = json.loads(path.read_text(encoding="utf-8"))
        if row["format"] != _FORMAT:
            raise ValueError(f"its format is {row['format']}, not {_FORMAT}")
        choices = _choices_of(row["choices"])
        families = {name: _family_of(family) for name, family in row["families"].items()}
        fit = Fit(row["device"], row["arch"], row["timings"], row["layers"], families, choices)
    except FileNotFoundError:
        return None
    except DatabaseError:
        raise
    except _UNREADABLE as error:
        raise DatabaseError(f"fit {path} does not read ({error!r}); run autotune fit again") from None
    return fit if (fit.device, fit.arch) == (device.name, device.arch) else None


def _choices_row(choices: Choices) -> dict[str, Any]:
    rows = {
        str(m): [by_size.get(size, ()) for size in choices.sizes]
        for m, by_size in sorted(choices.places.items())
    }
    return {"configs": list(map(str, choices.configs)), "sizes": choices.sizes, "places": rows}


def _choices_of(row: Mapping[str, Any]) -> Choices:
    configs = tuple(Config.parse(text) for text in row["configs"])
    sizes = tuple((int(n), int(k)) for n, k in row["sizes"])
    places = {
        int(m): {size: tuple(map(int, own)) for size, own in zip(sizes, rows, strict=True)}
        for m, rows in row["places"].items()
    }
    used = {place for by_size in places.values() for own in by_size.values() for place in own}
    if any(n < 1 or k < 1 for n, k in sizes) or not used <= set(range(len(configs))):
        raise ValueError("a size or a place of a config is not in range")
    return Choices(configs, sizes, places)


def _family_row(family: FamilyFit) -> dict[str, Any]:
    probes = [
        {
            **problem_row(each.problem),
            "config": str(each.config),
            "kernel": each.kernel,
            "us": each.estimate_us,
        }
        for each in family.probes
    ]
    forest = family.forest.as_row()
    return {"tunables": family.tunables, "spread": family.spread, "probes": probes, "forest": forest}


def _family_of(row: Mapping[str, Any]) -> FamilyFit:
    probes = tuple(
        Probe(problem_of(each), Config.parse(each["config"]), str(each["kernel"]), float(each["us"]))
        for each in row["probes"]
    )
    low, high = map(float, row["spread"])
    if not (np.isfinite((low, high)).all() and 0 < low <= high):
        raise ValueError(f"its spread is {low} to {high}")
    return FamilyFit(tuple(row["tunables"]), probes, (low, high), Forest.of_row(row["forest"]))
