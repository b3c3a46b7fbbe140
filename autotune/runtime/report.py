"""What `apply` did to a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotune.layer import Layer
    from autotune.runtime.lookup import Answer

_HITS = ("exact", "shipped")
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class LayerReport:
    """One distinct layer on one device: the linears that have it, and an answer for each bucket."""

    layer: Layer
    device: str
    names: tuple[str, ...]
    answers: tuple[Answer, ...]

    def count(self, *sources: str) -> int:
        """Number of buckets whose answer has one of the sources."""
        return sum(answer.source in sources for answer in self.answers)

    @property
    def tuned(self) -> bool:
        """Whether any bucket runs a config that was measured for this very layer."""
        return self.count(*_HITS) > 0


@dataclass(frozen=True)
class Report:
    """The linears that `apply` swapped, and what they run.

    `skipped` maps the name of each quantized linear that was left alone to the reason. `repack_s` and
    `plans_s` are seconds spent on repacking weights, and on looking up and preparing plans.
    """

    layers: tuple[LayerReport, ...]
    skipped: dict[str, str]
    repack_s: float
    plans_s: float

    @cached_property
    def applied(self) -> tuple[str, ...]:
        """Names of the linears that were swapped."""
        return tuple(name for layer in self.layers for name in layer.names)

    @property
    def hit(self) -> int:
        """Layer x bucket answered by an exact record, the user's or a shipped one."""
        return sum(layer.count(*_HITS) for layer in self.layers)

    @property
    def near(self) -> int:
        """Layer x bucket answered by the nearest record."""
        return sum(layer.count("near") for layer in self.layers)

    @property
    def default(self) -> int:
        """Layer x bucket that runs the default config."""
        return sum(layer.count("default") for layer in self.layers)

    @property
    def coverage(self) -> float:
        """Fraction of layer x bucket answered by an exact record; 0 without any layer."""
        return self.hit / max(1, self.hit + self.near + self.default)

    @property
    def untuned(self) -> tuple[LayerReport, ...]:
        """Layers without a single record of their own."""
        return tuple(layer for layer in self.layers if not layer.tuned)

    def __str__(self) -> str:
        seconds = f"{self.repack_s:.2f} s to repack, {self.plans_s * 1000:.0f} ms to look up and prepare"
        lines = [
            f"{len(self.applied)} linears of {len(self.layers)} layers tuned ({seconds})",
            f"{self.coverage:.0%} of layer x bucket from records: "
            f"{self.hit} hit, {self.near} near, {self.default} default",
        ]
        if self.layers:
            lines += _table(
                ("linears", "hit", "near", "default", "layer", "device", "config at m=1"),
                [
                    (
                        str(len(report.names)),
                        str(report.count(*_HITS)),
                        str(report.count("near")),
                        str(report.count("default")),
                        str(report.layer),
                        report.device,
                        str(report.answers[0].config),
                    )
                    for report in self.layers
                ],
            )
        return "\n".join(lines + self._skipped_lines())

    def _skipped_lines(self) -> list[str]:
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        return [f"skipped {len(names)}: {reason} ({_some(names)})" for reason, names in by_reason.items()]


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
