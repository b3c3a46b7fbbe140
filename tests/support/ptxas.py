"""What ptxas says of a unit."""

from autotune.jit import compiler
from autotune.jit.unit import Unit


def ptxas_log(unit: Unit) -> str:
    """Registers, spills and warnings."""
    return compiler._compile(unit, "--ptxas-options=-v")[1]


def spills(log: str) -> bool:
    return " 0 bytes spill stores" not in log


def is_serialised(log: str) -> bool:
    """ptxas waits for each product by itself where it cannot tell who uses its registers, and says so."""
    return "C75" in log
