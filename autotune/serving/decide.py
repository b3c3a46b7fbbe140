"""Which layers an engine gives to autotune: one decision each, because a weight is packed for one kernel."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean
from typing import TYPE_CHECKING, Literal, get_args

from autotune.values.errors import DatabaseError

if TYPE_CHECKING:
    from autotune.records.lookup import Answer, Lookup
    from autotune.values.layer import Layer

Mode = Literal["auto", "1", "0"]
"""`1` takes every layer that it can, `0` none; `auto` those that the records of this device model answer."""
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether autotune takes a layer, why not, and its answers to all that the engine runs."""

    layer: Layer
    reason: str | None
    answers: tuple[Answer, ...] = ()

    @property
    def taken(self) -> bool:
        """Whether autotune serves the layer."""
        return self.reason is None

    @property
    def sources(self) -> str:
        """Where the answers come from, as `exact m=1-512, predicted m=1024`."""
        runs: list[tuple[str, list[int]]] = []
        for answer in self.answers:
            if not runs or runs[-1][0] != answer.source:
                runs.append((answer.source, []))
            runs[-1][1].append(answer.problem.m)
        return ", ".join(f"{source} m={_span(ms)}" for source, ms in runs)


def mode_of(variable: str) -> Mode:
    """The mode that the environment variable asks for, `auto` where it is not set.

    Raises:
        ValueError: it is set to something else; the message names it.
    """
    value = os.environ.get(variable) or "auto"
    for mode in MODES:
        if value.strip().lower() == mode:
            return mode
    raise ValueError(f"{variable}={value!r} is not one of {', '.join(MODES)}")


def decide(layer: Layer, lookup: Lookup, buckets: Sequence[int], mode: Mode) -> Decision:
    """The decision for a layer of an engine that runs these buckets.

    In mode `auto` every answer must be of a record of this device model, or predicted from what was measured
    there, and no sweep may have seen the engine's own kernel win: over the answers whose record was timed
    with it in the same rounds, the geometric mean of its time over ours must be at least 1.

    Raises:
        DeviceError: no family of the device can do the layer.
    """
    answers = lookup.answers(layer, buckets)
    return Decision(layer, _why_not(lookup, answers) if mode == "auto" else None, answers)


def _why_not(lookup: Lookup, answers: Collection[Answer]) -> str | None:
    missing = [answer.problem.m for answer in answers if answer.source == "default"]
    if missing:
        which = ",".join(map(str, missing))
        return f"no record of {lookup.device.name} answers m={which}; sweep it with --serving"
    ratios = [ratio for answer in answers for ratio in _peer_ratios(answer, lookup)]
    if ratios and fmean(log(ratio) for _, ratio in ratios) < 0:
        return f"{ratios[0][0]} was faster in a sweep"
    return None


def _peer_ratios(answer: Answer, lookup: Lookup) -> list[tuple[str, float]]:
    """Names of other kernels timed beside the problem's own record, and their times over the record's."""
    if answer.median_us is None:
        return []
    try:
        explained = lookup.explain(answer)
    except DatabaseError:
        return []
    evidence = None if explained is None else explained.record.evidence
    peers = () if evidence is None else evidence.peers
    return [(name, us / answer.median_us) for name, us in peers]


def _span(ms: Sequence[int]) -> str:
    return str(ms[0]) if len(ms) == 1 else f"{ms[0]}-{ms[-1]}"
