"""Durations as a user writes them."""

from __future__ import annotations

import re

from autotune.values.errors import BudgetError

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds_of(text: str) -> float:
    """Seconds, from `90s`, `5m` or `1h`.

    Raises:
        BudgetError: the text is no such duration, or none at all.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([a-z]*)", text.strip())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise BudgetError(f"{text!r} is not a duration; give it with its unit, as 60s, 5m or 1h")
    return float(match[1]) * _UNITS[match[2]]
