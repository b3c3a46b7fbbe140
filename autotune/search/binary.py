"""The compiled kernel that goes into the store beside its record."""

from __future__ import annotations

from autotune.families import registry
from autotune.jit import compiler
from autotune.search.tune import Cubins
from autotune.values.device import Device
from autotune.values.errors import CompileError
from autotune.values.record import Binary, Record


def binary_of(record: Record | None, device: Device, cubins: Cubins) -> Binary | None:
    """The record's kernel, None when it needs no compiler."""
    if record is None:
        return None
    unit = registry.family_of(record.config).unit(record.config, record.problem.layer, device)
    if unit is None:
        return None
    cubin = cubins[unit.key]
    if isinstance(cubin, CompileError):
        return None
    return Binary(unit.key, unit.arch, compiler.compiler_version(), cubin)
