"""How much of a model's traffic runs configs that were measured for it. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.records.lookup import Lookup
from autotune.values.errors import LayerError
from autotune.values.layer import Layer, Problem, bucket_of

SOURCES = ("exact", "predicted", "default")
_EXACT = ("exact", "shipped")


@dataclass(frozen=True, slots=True)
class BucketCoverage:
    """Of one bucket: its share of all calls, and which shares of these have each of SOURCES.

    `exact` is a record of the user's or one that autotune ships.
    """

    m: int
    traffic: float
    sources: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Coverage:
    """By bucket what answers, and in all, weighted by traffic; shares from 0 to 1."""

    device: str
    layers: int
    buckets: tuple[BucketCoverage, ...]

    def share(self, source: str) -> float:
        """The share of all calls that this one of SOURCES answers."""
        return sum(bucket.traffic * bucket.sources[source] for bucket in self.buckets)

    @property
    def exact(self) -> float:
        """The share of all calls that run what was measured for them."""
        return self.share("exact")


def coverage(lookup: Lookup, layers: Iterable[Layer], traffic: Mapping[int, float]) -> Coverage:
    """What answers the layers; `traffic` is how often a layer is called with a number of tokens.

    Raises:
        DeviceError: no family of the device can do a layer.
    """
    asked = tuple(layers)
    counted: dict[int, dict[str, float]] = {}
    for m, calls in sorted(traffic.items()):
        if not calls:
            continue
        counts = counted.setdefault(bucket_of(m), dict.fromkeys(SOURCES, 0.0))
        for layer in asked:
            source = lookup.answer(Problem(layer, m)).source
            counts["exact" if source in _EXACT else source] += calls / len(asked)
    total = sum(traffic.values())
    buckets = (_of_bucket(m, counts, total) for m, counts in counted.items())
    return Coverage(lookup.device.name, len(asked), tuple(buckets))


def read_traffic(path: Path) -> dict[int, float]:
    """A histogram: a JSON object of calls by number of tokens, as {"1": 900, "33": 12}.

    Any number of tokens goes, and counts of zero.

    Raises:
        LayerError: it is something else, or has no calls; the message names the entry.
    """
    try:
        row: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LayerError(f"histogram {path} does not read: {reason}") from None
    if not isinstance(row, dict):
        raise LayerError(f'histogram {path} is no object of calls by number of tokens, as {{"1": 900}}')
    traffic: dict[int, float] = {}
    for text, calls in row.items():
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            raise LayerError(f"histogram {path}: {text!r} is not a number of tokens; use m >= 1")
        if type(calls) not in (int, float) or not 0 <= calls < float("inf"):
            raise LayerError(f"histogram {path}: m={text} has {calls!r} calls; give a number >= 0")
        traffic[int(text)] = traffic.get(int(text), 0.0) + calls
    if not any(traffic.values()):
        raise LayerError(f"histogram {path} has no calls; record some traffic first")
    return traffic


def _of_bucket(m: int, counts: Mapping[str, float], total: float) -> BucketCoverage:
    calls = sum(counts.values())
    return BucketCoverage(m, calls / total, {source: count / calls for source, count in counts.items()})
