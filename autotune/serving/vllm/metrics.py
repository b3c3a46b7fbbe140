"""What was decided, in vLLM's metrics.

Layers are decided where the model is loaded, in the workers, and metrics are asked of the first process. So a
worker writes a small file into a folder that the first process made, and the first process reads them all.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily

_FOLDER = "AUTOTUNE_VLLM_REPORT"


@dataclass(frozen=True, slots=True)
class Served:
    """A layer that autotune serves, how many linears have it, and the source of the answer by bucket."""

    layer: str
    linears: int
    sources: dict[str, str]


def show() -> None:
    """In the first process of an engine: make the folder, and show what is in it.

    Those that it starts by multiprocessing find the folder in their environment; a program that it starts
    otherwise may be another engine, and makes one of its own.
    """
    if multiprocessing.parent_process() is not None:
        return
    folder = Path(tempfile.mkdtemp(prefix="autotune-vllm-"))
    os.environ[_FOLDER] = str(folder)
    atexit.register(_remove, folder, os.getpid())
    REGISTRY.register(Collector(folder))


def write(rows: Iterable[Served]) -> None:
    """Have these shown as what this process serves; where they cannot be written, metrics lack them."""
    folder = os.environ.get(_FOLDER)
    if folder is None:
        return
    part = Path(folder, f".{os.getpid()}")
    try:
        part.write_text(json.dumps([asdict(row) for row in rows]))
        part.replace(Path(folder, f"{os.getpid()}.json"))
    except OSError:
        return


class Collector:
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
            "What answers a number of tokens of a layer: exact, shipped, predicted, default or policy.",
            labels=("layer", "worker", "m", "source"),
        )
        for worker, row in self._rows():
            linears.add_metric((row.layer, worker), row.linears)
            for m, source in row.sources.items():
                answers.add_metric((row.layer, worker, m, source), 1)
        yield linears
        yield answers

    def _rows(self) -> Iterator[tuple[str, Served]]:
        for file in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):  # the engine is ending
                yield from ((file.stem, Served(**row)) for row in json.loads(file.read_text()))


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a fork runs this too
        shutil.rmtree(folder, ignore_errors=True)
