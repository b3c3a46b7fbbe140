"""Which config of a race takes the least energy."""

from __future__ import annotations

from collections.abc import Callable

from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.record import Evidence


def least_energy(
    winner: Config, evidence: Evidence | None, device: Device, fits: Callable[[str], bool]
) -> tuple[Config, str]:
    """The config that takes the least energy for certain, else the winner; and why, in one phrase.

    Only configs that `fits` take part, as text, which the evidence of others may have anything for.
    """
    energy = () if evidence is None else evidence.energy
    measured = {name: joules for name, *joules in energy if fits(name)}
    own = measured.get(str(winner))
    if own is None:
        how = "; to measure it: autotune sweep --energy" if device.kind == "cuda" else ""
        return winner, f"its energy was not measured{how}"
    name, (least, _, high) = min(measured.items(), key=lambda each: each[1][0])
    if high >= own[1]:
        return winner, f"no other takes less energy for certain than its {_mj(own[0])} mJ a call"
    return Config.parse(name), f"it takes {_mj(least)} mJ a call, and the fastest, {winner}, {_mj(own[0])}"


def _mj(joules: float) -> str:
    return f"{1e3 * joules:.4g}"
