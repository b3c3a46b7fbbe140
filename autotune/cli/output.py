"""What goes to stdout: rows that can be piped, and JSON with one set of field names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autotune.console.text import layer_name

if TYPE_CHECKING:
    from autotune.checkpoints.shapes import Shape
    from autotune.search.executor import Executor
    from autotune.values.layer import Problem


class Rows:
    """A table of problems that is printed row by row: layer and m, then what else is told of each.

    A further column is a name and the width that its numbers take; texts, of width 0, come last.
    """

    def __init__(self, shapes: Sequence[Shape], *columns: tuple[str, int]) -> None:
        self._shapes = shapes
        self._names = ("layer", "m", *(name for name, _ in columns))
        widest = max(len(layer_name(shape.layer, shapes)) for shape in shapes)
        self._widths = (widest, 4, *(max(width, len(name)) if width else 0 for name, width in columns))

    def head(self) -> str:
        """The first line."""
        return self._line(self._names)

    def row(self, problem: Problem, *cells: str) -> str:
        """The line of a problem."""
        return self._line((layer_name(problem.layer, self._shapes), str(problem.m), *cells))

    def _line(self, cells: Sequence[str]) -> str:
        first, *others = zip(cells, self._widths, strict=True)
        return "  ".join((first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others))).rstrip()


def model_name(executors: Sequence[Executor]) -> str:
    """`NVIDIA H200`, or `2 x NVIDIA H200`."""
    count = f"{len(executors)} x " if len(executors) > 1 else ""
    return f"{count}{executors[0].device.name}"


def problem_fields(problem: Problem) -> dict[str, Any]:
    """What JSON has of a problem."""
    layer = problem.layer
    scheme = {name: getattr(layer, name) for name in ("group_size", "dtype", "zero_point")}
    return {"n": layer.n, "k": layer.k, **scheme, "m": problem.m}
