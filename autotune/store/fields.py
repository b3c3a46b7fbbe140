"""What a field of a stored row must be, the same for SQLAlchemy, sqlite3 and JSON; standard library only.

A row may be damaged, or somebody else may have written it. What passes here has the type, range and length
that the rest of the code relies on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from autotune.values.errors import DatabaseError

_LONGEST_WORD = 1000
_LONGEST_TEXT = 1 << 24
# As both databases can hold them in a column of INTEGER.
LARGEST = (1 << 31) - 1

_Value = TypeVar("_Value")
_More = ParamSpec("_More")


class Row(Protocol):
    """What dict, sqlite3.Row and SQLAlchemy's RowMapping have in common."""

    def __getitem__(self, name: str, /) -> Any: ...


class RowError(DatabaseError):
    """A row that is not what its table promises; the message names the value, but not the database."""


_Maker = Callable[Concatenate[Row, _More], _Value]


def row_of(what: str) -> Callable[[_Maker[_More, _Value]], _Maker[_More, _Value]]:
    """Have a maker of values raise RowError and nothing else, whatever is in the row."""

    def decorate(make: _Maker[_More, _Value]) -> _Maker[_More, _Value]:
        @functools.wraps(make)
        def made(row: Row, /, *more: _More.args, **named: _More.kwargs) -> _Value:
            try:
                return make(row, *more, **named)
            except RowError:
                raise
            except Exception as error:
                raise RowError(f"{what}{_number_of(row)} does not read: {in_short(error)}") from error

        return made

    return decorate


def _number_of(row: Row) -> str:
    try:
        return f" {row['id']:d}"
    except Exception:
        return ""  # a line of text has none


def in_short(error: BaseException) -> str:
    """The error in one line of at most some 200 characters."""
    line = " ".join((repr(error) if isinstance(error, LookupError) else str(error)).split())
    return line if len(line) <= 200 else f"{line[:200]}…"


def whole(row: Row, name: str, least: int = 0, most: int = LARGEST) -> int:
    """The field as a whole number of this range."""
    value = row[name]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name}={value!r} is not a whole number from {least} to {most}")
    return value


def number(value: Any, name: str, above: float = -math.inf) -> float:
    """The value as a float; SQLite and JSON may have a whole number in its place."""
    if type(value) not in (int, float) or not above < value < math.inf:
        raise ValueError(f"{name}={value!r} is not a finite number" + (" above 0" if above == 0 else ""))
    return float(value)


def time_us(row: Row, name: str) -> float:
    """The field as microseconds above 0."""
    return number(row[name], name, above=0)


def time_if_any(row: Row, name: str) -> float | None:
    """The same, or None where there is none."""
    return None if row[name] is None else time_us(row, name)


def word(value: Any, name: str) -> str:
    """A text that fits into a line."""
    if not isinstance(value, str) or len(value) > _LONGEST_WORD or not value.isprintable():
        raise ValueError(f"{name}={value!r} is not a line of text")
    return value


def text(value: Any, name: str) -> str:
    """The value as a text of any lines, up to 16 MiB."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise ValueError(f"{name}={value!r} is not a text")
    return value


def unix_s(moment: str) -> float:
    """The Unix seconds of a time as ISO 8601; one without an offset is in UTC."""
    read = datetime.fromisoformat(moment)
    return (read if read.tzinfo else read.replace(tzinfo=timezone.utc)).timestamp()


def moment(value: Any, name: str) -> str:
    """A time as ISO 8601, of Unix seconds; text and schemas before 0005 have it as it is."""
    if isinstance(value, str):
        unix_s(word(value, name))
        return value
    seconds = number(value, name)
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def one_of(value: Any, name: str, known: tuple[Any, ...]) -> Any:
    """The value, which is one of those that are known."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(str, known))}")
    return value


def if_any(value: Any, make: Callable[..., _Value], *more: Any) -> _Value | None:
    """What `make` makes of the value; None of None."""
    return None if value is None else make(value, *more)
