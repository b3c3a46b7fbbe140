"""What a measurement depends on besides the device and the config."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version
from importlib.util import find_spec

import autotune
from autotune.families import registry
from autotune.jit import compiler
from autotune.values.device import Device, driver_of
from autotune.values.record import Environment


def vllm_is_here() -> bool:
    """Whether a worker on this machine could time vLLM's kernels."""
    spec = find_spec("vllm")
    return spec is not None and spec.origin is not None  # a folder of that name is no package


def current_environment(device: Device, names: Collection[str] | None = None) -> Environment:
    """Driver, compiler, torch and the source of each family that can run on the device, as of now.

    The families are autotune's own, or those of these names: whoever measures in this environment knows no
    other.
    """
    return Environment(
        driver=driver_of(device),
        compiler=compiler.compiler_version() if device.kind == "cuda" else "built in",
        torch=version("torch"),
        version=autotune.__version__,
        sources={family.name: family.source_hash() for family in registry.families_of(device, names)},
    )
