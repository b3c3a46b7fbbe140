"""What `apply` did to a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import TYPE_CHECKING

from autotune.values.counts import counted

if TYPE_CHECKING:
    from autotune.records.lookup import Answer
    from autotune.values.config import Config
    from autotune.values.layer import Layer

_HITS = ("exact", "shipped")
_NAMES_SHOWN = 3
_HEAD = ("m", "config", "us", "gain")


@dataclass(frozen=True)
class LayerReport:
    """One distinct layer on one device: the linears that have it, and its answers, by m."""

    layer: Layer
    device: str
    names: tuple[str, ...]
    answers: tuple[Answer, ...]

    def count(self, *sources: str) -> int:
        """Number of answers of one of the sources."""
        return sum(answer.source in sources for answer in self.answers)

    @property
    def tuned(self) -> bool:
        """Whether any answer is a config that was measured for this very layer."""
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
    def predicted(self) -> int:
        """Layer x bucket that runs what a model of time chooses."""
        return sum(layer.count("predicted") for layer in self.layers)

    @property
    def default(self) -> int:
        """Layer x bucket that runs the default config."""
        return sum(layer.count("default") for layer in self.layers)

    @property
    def by_policy(self) -> int:
        """Layer x bucket that runs what a policy other than `fast` asks for, measured or not."""
        return sum(layer.count("policy") for layer in self.layers)

    @property
    def coverage(self) -> float:
        """Fraction of layer x bucket answered by an exact record; 0 without any layer."""
        return self.hit / max(1, self.hit + self.predicted + self.default + self.by_policy)

    @property
    def untuned(self) -> tuple[LayerReport, ...]:
        """Layers without a single record of their own, of those that records may answer."""
        return tuple(layer for layer in self.layers if not layer.tuned and not layer.count("policy"))

    def __str__(self) -> str:
        seconds = f"{self.repack_s:.2f} s to repack, {self.plans_s * 1000:.0f} ms to look up and prepare"
        lines = [
            f"{counted(len(self.applied), 'linear')} swapped, {counted(len(self.layers), 'layer')}, "
            f"{len(self.layers) - len(self.untuned)} tuned ({seconds})",
            f"{self.coverage:.0%} of layer x bucket from records: "
            f"{self.hit} hit, {self.predicted} predicted, {self.default} default"
            + (f", {self.by_policy} by the policy" if self.by_policy else ""),
        ]
        rows = [_rows(report.answers) for report in self.layers]
        widths = [max(map(len, column)) for column in zip(_HEAD, *chain.from_iterable(rows), strict=True)]
        for report, own in zip(self.layers, rows, strict=True):
            counts = Counter(answer.source for answer in report.answers)
            sources = ", ".join(f"{count} {source}" for source, count in counts.items())
            lines += ["", f"{len(report.names)} x {report.layer}", f"  on {report.device}: {sources}"]
            lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in (_HEAD, *own)]
        return "\n".join(lines + self._skipped_lines())

    def _skipped_lines(self) -> list[str]:
        """One line for each reason, under an empty one."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        told = [f"skipped {len(names)}: {reason} ({_some(names)})" for reason, names in by_reason.items()]
        return ["", *told] if told else []


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _rows(answers: tuple[Answer, ...]) -> list[tuple[str, ...]]:
    """A row for each run of answers with the same config, all measured for them or all from elsewhere."""
    runs = [list(run) for _, run in groupby(answers, _kind)]
    return [_row(run, run is runs[-1]) for run in runs]


def _kind(answer: Answer) -> tuple[Config, str]:
    return answer.config, "hit" if answer.source in _HITS else answer.source


def _row(run: list[Answer], last: bool) -> tuple[str, ...]:
    first, final = run[0].problem.m, run[-1].problem.m
    # The last answer serves every m above it too.
    tokens = f">={first}" if last else _span([str(first), str(final)])
    times = [
        (answer.median_us, answer.default_us) for answer in run if answer.median_us and answer.default_us
    ]
    if not times:
        return tokens, str(run[0].config), run[0].source, ""
    gains = sorted(default / median for median, default in times)
    measured = _span([f"{median:.1f}" if median < 100 else f"{median:.0f}" for median, _ in times])
    return tokens, str(run[0].config), measured, _span([f"{gain:.2f}" for gain in gains]) + "x"


def _span(texts: list[str]) -> str:
    """The first and the last of them, once if they are alike."""
    return "-".join(dict.fromkeys((texts[0], texts[-1])))
