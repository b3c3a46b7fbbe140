"""Autotuning for int4 GEMM kernels: sweep, look up and apply the fastest verified config."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from autotune.values.config import Config
from autotune.values.layer import Layer, Problem

if TYPE_CHECKING:
    from autotune.models.apply import apply
    from autotune.models.load import load
    from autotune.models.quantizer import QuantizationConfig
    from autotune.models.warmup import warmup
    from autotune.records.lookup import lookup
    from autotune.runtime.external import kernel
    from autotune.runtime.linear import Int4Linear

    __version__: str

__all__ = [
    "Config",
    "Int4Linear",
    "Layer",
    "Problem",
    "QuantizationConfig",
    "apply",
    "kernel",
    "load",
    "lookup",
    "warmup",
]

# Imported on first use, because torch takes seconds to import and the command line rarely needs it.
_LAZY = {
    "Int4Linear": "autotune.runtime.linear",
    "QuantizationConfig": "autotune.models.quantizer",
    "apply": "autotune.models.apply",
    "kernel": "autotune.runtime.external",
    "load": "autotune.models.load",
    "lookup": "autotune.records.lookup",
    "warmup": "autotune.models.warmup",
}


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
