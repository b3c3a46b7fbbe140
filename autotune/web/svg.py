"""Charts as SVG, drawn here: they need no script, take the colours of the page, and are the same in a report.

Every text goes through Markup.format, which escapes it. Colours are classes of static/style.css.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 940
_LEFT, _RIGHT, _TOP, _BOTTOM = 96, 24, 30, 34


@dataclass(frozen=True, slots=True)
class Point:
    """What is drawn at x, y with an interval from low to high, and told when pointed at."""

    x: float
    y: float
    low: float
    high: float
    kind: str
    title: str
    href: str = ""


class Axis:
    """Maps values to pixels, on a logarithmic scale where `log`."""

    def __init__(self, values: Iterable[float], start: float, end: float, log: bool = True) -> None:
        known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        self.low, self.high = (min(known), max(known)) if known else (1.0, 10.0)
        self._start, self._end, self._log = start, end, log
        pad = 1.06 if log else 0.05 * (self.high - self.low or abs(self.high) or 1)
        self.low, self.high = (self.low / pad, self.high * pad) if log else (self.low - pad, self.high + pad)

    def __call__(self, value: float) -> float:
        """The pixel of the value."""
        low, high = self.low, self.high
        if self._log:
            value, low, high = math.log(max(value, 1e-12)), math.log(low), math.log(high)
        return round(self._start + (value - low) / (high - low) * (self._end - self._start), 1)

    def ticks(self, most: int = 9) -> list[float]:
        """Round numbers within the axis."""
        if self._log:
            found: list[float] = []
            for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
                tens = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                found = [each * 10.0**ten for ten in tens for each in steps]
                found = [each for each in found if self.low <= each <= self.high]
                if len(found) >= 3:
                    return found[:: math.ceil(len(found) / most)]
            if len(found) >= 2:
                return found
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 3))
        step *= next(each for each in (1, 2, 5, 10) if (self.high - self.low) / (step * each) <= 6)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]


def number(value: float) -> str:
    """Three digits that mean something."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds(value: float) -> str:
    """Three digits, and none below a millisecond."""
    return number(round(value, 3))


def strip(
    lanes: Sequence[tuple[str, Sequence[Point]]], lines: Sequence[tuple[str, float]], said: str
) -> Markup:
    """A lane for each name with its points along x; lines are drawn through all of them."""
    height = _TOP + 44 * len(lanes) + _BOTTOM
    bounds = [each for _, points in lanes for point in points for each in (point.low, point.high)]
    axis = Axis([*bounds, *(x for _, x in lines)], _LEFT, WIDTH - _RIGHT)
    parts = [_ticks_x(axis, height, "µs")]
    for row, (name, points) in enumerate(lanes):
        middle = _TOP + 44 * row + 22
        parts.append(
            Markup('<text class="lane" x="{}" y="{}">{}</text>').format(_LEFT - 12, middle + 4, name)
        )
        parts += [_across(axis, point, middle + 30 * (point.y - 0.5)) for point in points]
    parts += _reference(axis, lines, height)
    return _svg(WIDTH, height, said, parts)


def interval(axis: Axis, point: Point, width: int, line: float | None) -> Markup:
    """One interval along an axis that rows of a table share; `line` marks a value of comparison."""
    x = None if line is None else axis(line)
    mark = "" if x is None else Markup('<path class="ref" d="M{0} 1V17"/>').format(x)
    parts = [mark, _across(axis, point, 9)]
    return Markup(
        '<svg class="bar" width="{0}" height="18" viewBox="0 0 {0} 18" aria-hidden="true">{1}</svg>'
    ).format(width, Markup("").join(parts))


def scatter(points: Sequence[Point], x_name: str, y_name: str, said: str) -> Markup:
    """Points on two equal logarithmic axes, with the line on which both are the same."""
    side = 460
    values = [each for point in points for each in (point.x, point.y)]
    across, down = Axis(values, 64, side - 16), Axis(values, side - 46, 16)
    parts = [_grid_y(down, 64, side - 16), _ticks_x(across, side - 12, "")]
    parts.append(
        Markup('<path class="ref" d="M{} {}L{} {}"/>').format(
            across(across.low), down(down.low), across(across.high), down(down.high)
        )
    )
    for point in points:
        dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>').format(
            point.kind, across(point.x), down(point.y), point.title
        )
        parts.append(_linked(point.href, dot))
    names = '<text class="axis end" x="{}" y="{}">{}</text><text class="axis" x="64" y="10">{}</text>'
    parts.append(Markup(names).format(side - 16, side - 1, x_name, y_name))
    return _svg(side, side + 4, said, parts)


def lines(
    series: Sequence[tuple[str, str, Sequence[Point]]],
    said: str,
    columns: Sequence[str] = (),
    marks: Sequence[tuple[float, str]] = (),
    level: float | None = None,
    unit: str = "µs",
    log_y: bool = True,
) -> Markup:
    """A line for each series (name, class, points), which is named at its end.

    x is logarithmic, or with `columns` the place of one of these. `marks` are vertical lines with what they
    say, `level` is a horizontal one.
    """
    width, height = (min(WIDTH, 220 + 90 * len(columns)), 260) if columns else (490, 260)
    right = width - 112
    every = [point for _, _, points in series for point in points]
    if columns:
        across = Axis([-0.3, len(columns) - 0.7], _LEFT - 30, right, log=False)
        step = math.ceil(len(columns) / 8)
        ticks = [(float(x), name) for x, name in enumerate(columns)][::step]
    else:
        across = Axis([point.x for point in every], _LEFT - 30, right)
        ticks = [(x, number(x)) for x in sorted({point.x for point in every}) if math.log2(x).is_integer()]
        ticks = ticks[:: math.ceil(len(ticks) / 9)]
    down = Axis(
        [*(each for point in every for each in (point.low, point.high)), *([level] if level else [])],
        height - _BOTTOM, _TOP, log_y,
    )  # fmt: skip
    parts = [_grid_y(down, _LEFT - 30, right)]
    parts.append(Markup('<text class="axis" x="{}" y="14">{}</text>').format(_LEFT - 30, unit))
    parts += [
        Markup('<text class="tick" x="{}" y="{}">{}</text>').format(across(x), height - 12, name)
        for x, name in ticks
    ]
    if level is not None:
        parts.append(Markup('<path class="ref" d="M{} {}H{}"/>').format(_LEFT - 30, down(level), right))
    parts += _marks(marks, across, width, height)
    for _, kind, points in reversed(series):  # the first is seen best
        parts.append(_line(across, down, points, kind))
    parts += _names(series, across, down, height)
    return _svg(width, height, said, parts)


def bars(values: Sequence[tuple[str, float]], said: str, width: int = 460) -> Markup:
    """A bar for each name, from the left to the right."""
    height, most = 120, max((value for _, value in values), default=0) or 1
    step = (width - 8) / max(len(values), 1)
    parts = [Markup('<path class="grid" d="M0 {0}H{1}"/>').format(height - 22, width)]
    for place, (name, value) in enumerate(values):
        tall = (height - 40) * value / most
        x, y = round(4 + step * place, 1), round(height - 22 - tall, 1)
        parts.append(
            Markup(
                '<rect class="fill" x="{}" y="{}" width="{}" height="{}"><title>{}: {}</title></rect>'
            ).format(x, y, round(step * 0.72, 1), round(tall, 1), name, number(value))
        )
        if place % max(1, len(values) // 6) == 0:
            parts.append(
                Markup('<text class="tick start" x="{}" y="{}">{}</text>').format(x, height - 6, name)
            )
    parts.append(Markup('<text class="tick start" x="4" y="12">{}</text>').format(f"most: {number(most)}"))
    return _svg(width, height, said, parts)


def _svg(width: int, height: int, said: str, parts: Iterable[Markup | str]) -> Markup:
    whole = (
        '<svg class="chart{4}" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" '
        'aria-label="{2}">{3}</svg>'
    )
    fits = " fits" if width < 500 else ""  # on a telephone, where a wider one is scrolled
    return Markup(whole).format(width, height, said, Markup("").join(parts), fits)


def _across(axis: Axis, point: Point, y: float) -> Markup:
    y = round(y, 1)
    parts = Markup('<g class="{}"><title>{}</title>').format(point.kind, point.title)
    if point.high > point.low:
        parts += Markup('<path class="span" d="M{} {}H{}"/>').format(axis(point.low), y, axis(point.high))
    return _linked(
        point.href,
        parts + Markup('<circle class="dot" cx="{}" cy="{}" r="3.5"/></g>').format(axis(point.x), y),
    )


def _linked(href: str, what: Markup) -> Markup:
    # The table beside a chart has the same links, which the keyboard reaches.
    return Markup('<a href="{}" tabindex="-1">{}</a>').format(href, what) if href else what


def _ticks_x(axis: Axis, height: float, unit: str) -> Markup:
    parts = Markup("")
    for tick in axis.ticks():
        parts += Markup(
            '<path class="grid" d="M{0} {1}V{2}"/><text class="tick" x="{0}" y="{3}">{4}</text>'
        ).format(axis(tick), _TOP - 14, height - _BOTTOM, height - 16, number(tick))
    return parts + Markup('<text class="axis end" x="{}" y="{}">{}</text>').format(
        WIDTH - 2, height - 16, unit
    )


def _grid_y(axis: Axis, left: float, right: float) -> Markup:
    parts = Markup("")
    for tick in axis.ticks(6):
        parts += Markup(
            '<path class="grid" d="M{0} {1}H{2}"/><text class="tick end" x="{3}" y="{4}">{5}</text>'
        ).format(left, axis(tick), right, left - 8, axis(tick) + 4, number(tick))
    return parts


def _reference(axis: Axis, lines: Sequence[tuple[str, float]], height: float) -> list[Markup]:
    """Lines through all lanes; a name goes to the side where its line has more room."""
    parts = []
    for place, (name, x) in enumerate(sorted(lines, key=lambda line: line[1])):
        at, left = axis(x), axis(x) > WIDTH - 160
        parts.append(
            Markup(
                '<path class="ref" d="M{0} {1}V{2}"/><text class="ref{3}" x="{4}" y="{5}">{6} {7}</text>'
            ).format(
                at, 10, height - _BOTTOM, " end" if left else "", at + (-4 if left else 4),
                10 + 11 * (place % 2), name, number(x),
            )
        )  # fmt: skip
    return parts


def _line(across: Axis, down: Axis, points: Sequence[Point], kind: str) -> Markup:
    path = "".join(f"{'L' if place else 'M'}{across(p.x)} {down(p.y)}" for place, p in enumerate(points))
    parts = Markup('<g class="{}"><path class="line" d="{}"/>').format(kind, path)
    for point in points:
        x = across(point.x)
        if point.high > point.low:
            parts += Markup('<path class="span" d="M{} {}V{}"/>').format(x, down(point.low), down(point.high))
        parts += Markup('<circle class="dot" cx="{}" cy="{}" r="3"><title>{}</title></circle>').format(
            x, down(point.y), point.title
        )
    return parts + Markup("</g>")


def _marks(marks: Sequence[tuple[float, str]], across: Axis, width: float, height: float) -> list[Markup]:
    """Vertical lines; what one says goes to the side where it has more room."""
    parts = []
    for place, (value, text) in enumerate(marks):
        x = across(value)
        kind, beside = ("mark end", x - 4) if x > width / 2 else ("mark", x + 4)
        line = '<path class="mark" d="M{0} {1}V{2}"/><text class="{3}" x="{4}" y="{5}">{6}</text>'
        y = _TOP + 2 + 12 * (place % 3)
        parts.append(Markup(line).format(x, _TOP - 8, height - _BOTTOM, kind, beside, y, text))
    return parts


def _names(
    series: Sequence[tuple[str, str, Sequence[Point]]], across: Axis, down: Axis, height: float
) -> list[Markup]:
    """Each series' name beside its last point; of those that end at one x, moved where two would touch."""
    found: list[Markup] = []
    free: dict[float, float] = {}
    ends = sorted(
        (across(points[-1].x), down(points[-1].y), name, kind) for name, kind, points in series if points
    )
    for x, y, name, kind in ends:
        free[x] = max(free.get(x, 0.0) + 14, min(y, height - _BOTTOM - 14 * (len(ends) - len(found) - 1)))
        found.append(
            Markup('<text class="name {}" x="{}" y="{}">{}</text>').format(kind, x + 8, free[x] + 4, name)
        )
    return found
