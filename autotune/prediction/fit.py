"""A fit: what the timed configs of a device model say beyond the families' estimates, and its file.

It is as good as the estimates and the kernels that it was made with. So it keeps some of both for each
family, its probes, and a family where they are others today goes without a fit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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
    """Of one device model; `choices` are by m the configs that did best there on some layer.

    `timings` and `layers` count what it was made from.
    """

    device: str
    arch: str
    timings: int
    layers: int
    families: Mapping[str, FamilyFit]
    choices: Mapping[int, tuple[Config, ...]]


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
        "choices": {str(m): list(map(str, configs)) for m, configs in sorted(fit.choices.items())},
        "families": {name: _family_row(family) for name, family in sorted(fit.families.items())},
    }
    waiting = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting.write_text(json.dumps(row, indent=0) + "\n", encoding="utf-8")
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
        choices = {int(m): tuple(map(Config.parse, texts)) for m, texts in row["choices"].items()}
        families = {name: _family_of(family) for name, family in row["families"].items()}
        fit = Fit(row["device"], row["arch"], row["timings"], row["layers"], families, choices)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, AutotuneError) as error:
        if isinstance(error, DatabaseError):
            raise
        raise DatabaseError(f"fit {path} does not read ({error!r}); run autotune fit again") from None
    return fit if (fit.device, fit.arch) == (device.name, device.arch) else None


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
