"""Families that ship, as the registry finds them, for tests that need a real one and do not care which."""

from __future__ import annotations

from autotune.families import registry
from autotune.families.protocol import Plan
from autotune.values.device import Device
from autotune.values.layer import Layer, Problem

(CPU_FAMILY,) = (family for family in registry.families().values() if family.kind == "cpu")
GPU_FAMILY = next(family for family in registry.families().values() if family.kind == "cuda")


def simplest_plan(layer: Layer, device: Device) -> Plan:
    """A plan of the CPU's family, the same on every machine."""
    return CPU_FAMILY.plan(CPU_FAMILY.valid(Problem(layer, 1), device)[0], layer, device, None)
