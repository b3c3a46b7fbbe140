"""What the compiler is given."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.jit.sources import digest, source_hash


@dataclass(frozen=True, slots=True)
class Unit:
    """One translation unit for the compiler: a file of csrc/cuda, its defines and an exact arch."""

    source: str
    defines: tuple[tuple[str, int], ...]
    arch: str

    @property
    def key(self) -> str:
        """Names the unit's content: equal keys compile to the same kernel with the same compiler."""
        return digest((source_hash(self.source), self.defines, self.arch))
