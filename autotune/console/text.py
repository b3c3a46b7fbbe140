"""Tables, and how layers and times are written in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotune.checkpoints.shapes import Shape
    from autotune.values.layer import Layer


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


def microseconds(value: float | None) -> str:
    """A time for a table: three digits that mean something, `-` for none."""
    return "-" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"
