"""Fields of a JSON object whose every key must be known: read here, or listed as harmless."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from autotune.values.errors import FormatError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


class Fields:
    """The object `told`, which stands under the name `where`; it notes which keys are asked for.

    What is asked for has to have the right type; absent and null are the same. Several names are spellings of
    one field: the first that is there counts.

    Raises:
        FormatError: `told` is not an object.
    """

    def __init__(self, told: Any, where: str = "quantization_config") -> None:
        if not isinstance(told, Mapping):
            raise FormatError(f"{where} is {shown(told)}, which is not an object")
        self.where = where
        self._told = told
        self._asked: set[str] = set()

    def any(self, *names: str) -> Any:
        """The value of the field, whatever it is."""
        self._asked.update(names)
        return next((self._told[name] for name in names if self._told.get(name) is not None), None)

    def has(self, name: str) -> bool:
        """Whether the key is there; it does not count as asked for."""
        return name in self._told

    def word(self, *names: str) -> str | None:
        """The text of the field in lower case."""
        found = self.any(*names)
        # An enum of transformers holds its text as value.
        found = getattr(found, "value", found)
        if found is not None and not isinstance(found, str):
            raise self._wrong(names, found, "text")
        return found if found is None else found.lower()

    def integer(self, *names: str) -> int:
        """The number of the field, which has to be there."""
        found = self.any(*names)
        if not isinstance(found, int) or isinstance(found, bool):
            raise self._wrong(names, found, "a whole number")
        return found

    def flag(self, *names: str) -> bool | None:
        """The truth of the field."""
        found = self.any(*names)
        if found is not None and not isinstance(found, bool):
            raise self._wrong(names, found, "true or false")
        return found

    def inner(self, name: str) -> Fields:
        """The object of the field."""
        return Fields(self.any(name), f"{self.where}.{_bare(name)}")

    def inners(self, name: str, without: str | None = None) -> list[tuple[str, Fields]]:
        """The objects in the object of the field, by their keys; none where the field is absent or empty.

        Values of keys that start as `without` says are not looked at.
        """
        found = self.any(name)
        if not found:
            return []
        fields = Fields(found, f"{self.where}.{name}")
        return [(key, fields.inner(key)) for key in found if without is None or not key.startswith(without)]

    def list(self, name: str) -> list[Fields]:
        """The objects in the list of the field; none where the field is absent or empty."""
        found = self.any(name) or []
        if not isinstance(found, list):
            raise self._wrong((name,), found, "a list")
        return [Fields(told, f"{self.where}.{name}[{i}]") for i, told in enumerate(found)]

    def end(self, harmless: Collection[str]) -> None:
        """FormatError unless each key was asked for, is harmless, or is null, false, 0 or empty."""
        for key, value in self._told.items():
            if value and key not in self._asked and key not in harmless:
                raise self.refused(key, value)

    def refused(self, key: str, value: Any) -> FormatError:
        """The error that says that `key` may not have `value`."""
        return FormatError(
            f"{self.where} has {_bare(key)}={shown(value)}, which may change what the model computes;"
            " checkpoints with it are not read"
        )

    def _wrong(self, names: tuple[str, ...], found: Any, expected: str) -> FormatError:
        name = next((name for name in names if self._told.get(name) is not None), names[0])
        return FormatError(f"{self.where} has {name}={shown(found)}, which is not {expected}")


def _bare(key: str) -> str:
    """The key for an error's one line."""
    return shown(key)[1:-1]


def shown(value: Any) -> str:
    """The value for an error's one line, shortened."""
    return _SHORT.repr(value)
