"""Compiles ahead what models would run, so that none has to compile when it loads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autotune.families import registry
from autotune.jit.building import build_all
from autotune.jit.unit import Unit
from autotune.records.lookup import Lookup
from autotune.values.errors import CompileError
from autotune.values.layer import Layer


def prefetch(
    lookup: Lookup, layers: Iterable[Layer], tokens: Sequence[int]
) -> tuple[int, int, list[CompileError]]:
    """Have every kernel that answers the layers at these numbers of tokens stored or in the cache.

    Returns:
        How many kernels there are, how many the database lacks, and the errors of those that do not build.

    Raises:
        CompileError: some are to be compiled, and there is no compiler.
        DeviceError: no family of the device can do a layer.
    """
    units: dict[str, Unit] = {}
    for layer in layers:
        for answer in lookup.answers(layer, tokens):
            unit = registry.family_of(answer.config).unit(answer.config, layer, lookup.device)
            if unit is not None:
                units[unit.key] = unit
    missing = [unit for key, unit in units.items() if lookup.binary(key) is None]
    built = build_all(missing, processes=True) if missing else {}
    return len(units), len(missing), [each for each in built.values() if isinstance(each, CompileError)]
