"""Durations as a user writes them."""

from __future__ import annotations

import re

from autotune.values.errors import BudgetError

_LONGEST_S = 366 * 86_400.0
"""No system waits for all that a number can say."""
_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds_of(text: str) -> float:
    """Seconds, from `90s`, `5m` or `1h`.

    Raises:
        BudgetError: the text is no such duration, none at all, or longer than a year.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([a-z]*)", text.strip())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise BudgetError(f"{text!r} is not a duration; give it with its unit, as 60s, 5m or 1h")
    length_s = float(match[1]) * _UNITS[match[2]]
    if length_s > _LONGEST_S:
        raise BudgetError(f"{text[:80]!r} is longer than a year; give a shorter one, as 5m or 1h")
    return length_s
