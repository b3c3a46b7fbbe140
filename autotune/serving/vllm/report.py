"""What was decided for which layers, once in vLLM's log and at all times in its metrics.

Layers are decided where the model is loaded, in the workers, and metrics are asked of the first process. So a
worker writes a small file into a folder that the first process made, and the first process reads them all.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from vllm.logger import init_logger

from autotune import __version__
from autotune.device import Device
from autotune.layer import Layer
from autotune.serving.decide import Decision
from autotune.serving.vllm import engine

_FOLDER = "AUTOTUNE_VLLM_REPORT"

_LOG = init_logger("vllm.autotune")

decisions: dict[tuple[Layer, tuple[int, ...], Device], Decision] = {}
"""By layer, buckets and device: what was decided in this process."""
_left: set[tuple[str, str]] = set()
_taken: Counter[Layer] = Counter()


def digest() -> str | None:
    """What names this autotune and all that it has taken here to a compile cache."""
    taken = sorted(str(layer) for (layer, *_), decision in decisions.items() if decision.taken)
    return f"autotune {__version__} {hashlib.sha256(repr(taken).encode()).hexdigest()[:16]}"


def decided(decision: Decision) -> None:
    """Say once what a layer runs, and note it for the metrics."""
    if decision.taken and engine.is_first_rank():
        _LOG.info("autotune serves %s: %s", decision.layer, decision.sources)
    _write()


def left(shape: str, reason: str) -> None:
    """Say once that vLLM's own kernel serves layers of this shape, and why."""
    if (shape, reason) not in _left:
        _left.add((shape, reason))
        if engine.is_first_rank():
            _LOG.info("autotune leaves %s to vLLM: %s", shape, reason)


def took(layer: Layer) -> None:
    """Count a linear whose weight was packed."""
    _taken[layer] += 1
    _write()


def show_metrics() -> None:
    """In the first process of an engine: make the folder, and show what is in it."""
    if _FOLDER in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="autotune-vllm-"))
    os.environ[_FOLDER] = str(folder)
    atexit.register(_remove, folder, os.getpid())
    REGISTRY.register(_Collector(folder))


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a fork runs this too
        shutil.rmtree(folder, ignore_errors=True)


def _write() -> None:
    """The decisions of this process as a file; where it cannot be written, metrics lack them."""
    folder = os.environ.get(_FOLDER)
    if folder is None:
        return
    rows = [
        {
            "layer": str(decision.layer),
            "linears": _taken[decision.layer],
            "answers": [(answer.problem.m, answer.source) for answer in decision.answers],
        }
        for decision in decisions.values()
        if decision.taken
    ]
    part = Path(folder, f".{os.getpid()}")
    try:
        part.write_text(json.dumps(rows))
        part.replace(Path(folder, f"{os.getpid()}.json"))
    except OSError:
        return


class _Collector:
    """Reads the files at each scrape."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The linears that autotune serves, and the source of the answer for each bucket of their layers."""
        linears = GaugeMetricFamily(
            "autotune_linears", "Linears of this engine that autotune serves.", labels=("layer", "worker")
        )
        answers = GaugeMetricFamily(
            "autotune_answer",
            "What answers a number of tokens of a layer: exact, shipped, near or default.",
            labels=("layer", "worker", "m", "source"),
        )
        for worker, row in self._rows():
            linears.add_metric((row["layer"], worker), row["linears"])
            for m, source in row["answers"]:
                answers.add_metric((row["layer"], worker, str(m), source), 1)
        yield linears
        yield answers

    def _rows(self) -> Iterator[tuple[str, Any]]:
        for file in sorted(self._folder.glob("*.json")):
            yield from ((file.stem, row) for row in json.loads(file.read_text()))
