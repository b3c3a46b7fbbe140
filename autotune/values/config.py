"""A config: a kernel family plus a value for each of its tunables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from autotune.values.errors import ConfigError

_TEXT = re.compile(r"(?P<family>[a-z_][a-z0-9_]*)(:(?P<values>.*))?")
_VALUE = re.compile(r"(?P<name>[a-z_][a-z0-9_]*)=(?P<value>\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Config:
    """Family and tunables. The text form is `family:tile_m=16,warps=4,split_k=4`."""

    family: str
    values: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, family: str, **values: int) -> Config:
        """A config from keyword values; their order is kept in the text form."""
        return cls(family, tuple(values.items()))

    @classmethod
    def parse(cls, text: str) -> Config:
        """Read the text form.

        Raises:
            ConfigError: the text is not `family:name=int,...`, or names a tunable twice.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"config {text!r} does not read as family:name=number,...")
        values: dict[str, int] = {}
        for part in (match["values"] or "").split(",") if match["values"] else []:
            value = _VALUE.fullmatch(part.strip())
            if value is None:
                raise ConfigError(f"config {text!r}: {part!r} does not read as name=number")
            if value["name"] in values:
                raise ConfigError(f"config {text!r}: {value['name']} is given twice")
            values[value["name"]] = int(value["value"])
        return cls(match["family"], tuple(values.items()))

    def __getitem__(self, name: str) -> int:
        for key, value in self.values:
            if key == name:
                return value
        raise ConfigError(f"config {self} has no {name}")

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.values)

    def as_dict(self) -> Mapping[str, int]:
        """The tunables by name."""
        return dict(self.values)

    def __str__(self) -> str:
        return f"{self.family}:" + ",".join(f"{name}={value}" for name, value in self.values)
