"""What was decided for which layers: kept, said once in vLLM's log, and noted for its metrics."""

from __future__ import annotations

import hashlib
from collections import Counter
from weakref import WeakKeyDictionary

from vllm.logger import init_logger

from autotune import __version__
from autotune.serving.decide import Decision
from autotune.serving.vllm import engine, metrics
from autotune.values.device import Device
from autotune.values.layer import Layer

_LOG = init_logger("vllm.autotune")

decisions: dict[tuple[Layer, tuple[int, ...], Device], Decision] = {}
"""By layer, buckets and device: what was decided in this process."""
_left: set[tuple[str, str]] = set()
_taken: WeakKeyDictionary[object, Layer] = WeakKeyDictionary()
"""The layers of the kernels that are in use."""


def digest() -> str:
    """What names this autotune and all that it has taken here to a compile cache."""
    taken = sorted(str(layer) for (layer, *_), decision in decisions.items() if decision.taken)
    return f"autotune {__version__} {hashlib.sha256(repr(taken).encode()).hexdigest()[:16]}"


def decided(decision: Decision) -> None:
    """Say once what a layer runs, and note it for the metrics."""
    if decision.taken and engine.is_first_rank():
        _LOG.info("autotune serves %s: %s", decision.layer, decision.sources)
    _note()


def left(shape: str, reason: str) -> None:
    """Say once that vLLM's own kernel serves layers of this shape, and why."""
    if (shape, reason) not in _left:
        _left.add((shape, reason))
        if engine.is_first_rank():
            _LOG.info("autotune leaves %s to vLLM: %s", shape, reason)


def took(kernel: object, layer: Layer) -> None:
    """Count the linear of this kernel, as long as there is one."""
    _taken[kernel] = layer
    _note()


def _note() -> None:
    linears = Counter(_taken.values())
    taken = (decision for decision in decisions.values() if decision.taken)
    metrics.write(
        metrics.Served(
            str(decision.layer),
            linears[decision.layer],
            {str(answer.problem.m): answer.source for answer in decision.answers},
        )
        for decision in taken
    )
