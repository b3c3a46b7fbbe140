"""What goes to stdout: plain tables that can be piped, and JSON with one set of field names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.checkpoints.shapes import Shape
    from autotune.search.executor import Executor
    from autotune.values.layer import Layer, Problem


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, numbers to the right, two spaces between."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [all(map(_is_number, column[1:])) for column in columns]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines)


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


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.rstrip("x").replace(".", "", 1).isdecimal()


def layer_name(layer: Layer, shapes: Sequence[Shape]) -> str:
    """`4096x4096 q,k,v,o`, with what differs from group size 128, fp16 and zeros."""
    unusual = [
        text
        for text, differs in (
            (f"g{layer.group_size}", layer.group_size != 128),
            (layer.dtype, layer.dtype != "fp16"),
            ("symmetric", not layer.zero_point),
        )
        if differs
    ]
    projections = [
        ",".join(shape.projections) for shape in shapes if shape.layer == layer and shape.projections
    ]
    return " ".join([f"{layer.n}x{layer.k}", *unusual, *projections])


def model_name(executors: Sequence[Executor]) -> str:
    """`NVIDIA H200`, or `2 x NVIDIA H200`."""
    count = f"{len(executors)} x " if len(executors) > 1 else ""
    return f"{count}{executors[0].device.name}"


def microseconds(value: float | None) -> str:
    """A time for a table: three digits that mean something, `-` for none."""
    return "-" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def problem_fields(problem: Problem) -> dict[str, Any]:
    """n, k, group_size, dtype, zero_point and m, as JSON has them."""
    return {**asdict(problem.layer), "m": problem.m}
