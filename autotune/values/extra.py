"""What is measured besides times, where somebody asks for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extra:
    """With `peer`, vLLM's kernel for the layer is timed beside the candidates; with `energy`, the joules of a
    call are measured of those that are nearly the fastest.
    """

    peer: bool = False
    energy: bool = False

    def __bool__(self) -> bool:
        return self.peer or self.energy


TIMES_ONLY = Extra()
