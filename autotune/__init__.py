"""Autotuning for int4 GEMM kernels: sweep, look up and apply the fastest verified config.

- `load` and `apply` give a model tuned linears (`Int4Linear`), `warmup` readies them for the first request,
  and `QuantizationConfig` has transformers' own `from_pretrained` do what `load` does.
- `sweep` tunes what a loaded model lacks, or any shapes, and returns a `SweepReport`.
- `lookup` tells the `Config` that runs a `Layer` for a number of tokens; a `Problem` is both together.
  A layer's `Scheme` says how its weights are stored and multiplied.
- `kernel` makes a function of your own a kernel that is tuned like autotune's.

Every error that is raised on purpose is an `AutotuneError`, whose message is one line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from autotune.values.config import Config
from autotune.values.errors import AutotuneError
from autotune.values.layer import Layer, Problem
from autotune.values.scheme import Scheme

if TYPE_CHECKING:
    from autotune.models.apply import apply
    from autotune.models.load import load
    from autotune.models.quantizer import QuantizationConfig
    from autotune.models.warmup import warmup
    from autotune.notebook.report import SweepReport
    from autotune.notebook.sweep import sweep
    from autotune.records.lookup import lookup
    from autotune.runtime.external import kernel
    from autotune.runtime.linear import Int4Linear

    __version__: str

__all__ = [
    "AutotuneError",
    "Config",
    "Int4Linear",
    "Layer",
    "Problem",
    "QuantizationConfig",
    "Scheme",
    "SweepReport",
    "apply",
    "kernel",
    "load",
    "lookup",
    "sweep",
    "warmup",
]

# Imported on first use, because torch takes seconds to import and the command line rarely needs it.
_LAZY = {
    "Int4Linear": "autotune.runtime.linear",
    "QuantizationConfig": "autotune.models.quantizer",
    "SweepReport": "autotune.notebook.report",
    "apply": "autotune.models.apply",
    "kernel": "autotune.runtime.external",
    "load": "autotune.models.load",
    "lookup": "autotune.records.lookup",
    "sweep": "autotune.notebook.sweep",
    "warmup": "autotune.models.warmup",
}


if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("autotune-int4")
            except PackageNotFoundError:
                return "0+checkout"
        if name not in _LAZY:
            raise AttributeError(f"module 'autotune' has no attribute {name!r}")
        return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
