"""Where look-up gets records and binaries: the user's database and the files that autotune ships.

Standard library only. No trouble with a source stops a look-up, whatever it is: it is warned of once, and the
others answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from autotune.device import Device
from autotune.errors import AutotuneError
from autotune.kernels.compiler import cached_by
from autotune.layer import Layer
from autotune.paths import Location, database_url, sqlite_path
from autotune.record import Record
from autotune.runtime.explain import Explanation, explain
from autotune.runtime.near import kind
from autotune.runtime.stored import near_records, shipped_files, user_binary, user_records
from autotune.store.exchange import read_text
from autotune.store.rows import in_short

_Result = TypeVar("_Result")
_Records = dict[Layer, list[Record]]

_warned: set[str] = set()


class Sources:
    """The records for a device: those that autotune ships, read once, and those of the user's database.

    Of the database a layer's own records are read when they are first asked for, and those of other layers
    when these are. A database that cannot be read is not asked again.
    """

    def __init__(self, device: Device, db: Location | None = None) -> None:
        """`db` is as for `Lookup`."""
        self._device = device
        self._path = _local_file(database_url(db))
        self._compilers: set[str] = set()
        self._shipped: _Records = {}
        self._stored: _Records = {}
        self._near: _Records = {}
        for path in shipped_files():
            self._read_shipped(path)

    def shipped(self, layer: Layer) -> list[Record]:
        """The layer's records among those that autotune ships, the last one first."""
        return self._shipped.get(layer, [])[::-1]

    def stored(self, layer: Layer) -> list[Record]:
        """The layer's records in the user's database, the newest first."""
        if layer not in self._stored:
            self._stored[layer] = self._read(user_records, layer)
        return self._stored[layer][::-1]

    def others(self, layer: Layer) -> _Records:
        """Records of other layers of the same kind, those of the user's database before what is shipped."""
        if layer not in self._near:
            self._near[layer] = self._read(near_records, layer)
        found: _Records = {}
        for record in reversed(self._near[layer]):
            found.setdefault(record.problem.layer, []).append(record)
        for other in self._shipped:
            if other != layer and kind(other) == kind(layer):
                found.setdefault(other, []).extend(self.shipped(other))
        return found

    def binary(self, unit_key: str) -> bytes | None:
        """The compiled kernel of the unit, None when there is none to be had without a compiler."""
        path = self._path
        stored = path and _tried(f"database {path}", lambda: user_binary(path, unit_key), None)
        made = (cached_by(version, unit_key) for version in self._compilers)
        return stored or next(filter(None, made), None)

    def explain(self, record: Record) -> Explanation:
        """The record with its evidence, as far as that can be read."""
        return _tried(
            f"the evidence of {record.problem}",
            lambda: explain(record, self._path),
            Explanation(record, None),
        )

    def _read(
        self, read: Callable[[Path, Device, Layer], tuple[list[Record], list[str]]], layer: Layer
    ) -> list[Record]:
        path = self._path
        if path is None:
            return []
        found = _tried(f"database {path}", lambda: read(path, self._device, layer), None)
        if found is None:
            self._path = None
            return []
        records, bad = found
        _warn_of_bad(f"database {path}", "rows", bad)
        return records

    def _read_shipped(self, path: Path) -> None:
        bad: list[str] = []
        found = _tried(str(path), partial(read_text, path, self._device.arch, bad), None)
        _warn_of_bad(str(path), "lines", bad)
        if found is None:
            return
        environment, records = found
        if records:
            self._compilers.add(environment.compiler)
        for record in records:
            self._shipped.setdefault(record.problem.layer, []).append(record)


def _local_file(url: str) -> Path | None:
    """The file of the database, None when it is another kind of database."""
    path = sqlite_path(url)
    if path is None:
        scheme = url.partition("://")[0]
        _warn(f"database {scheme}://...: model load reads a local SQLite file only; use --db with its path")
    return path


def _tried(what: str, read: Callable[[], _Result], otherwise: _Result) -> _Result:
    """What `read` finds; `otherwise`, with a warning, whatever it raises."""
    try:
        return read()
    except Exception as error:
        _warn(str(error) if isinstance(error, AutotuneError) else f"{what} cannot be read: {in_short(error)}")
        return otherwise


def _warn_of_bad(source: str, rows: str, bad: list[str]) -> None:
    if bad:
        _warn(f"{source}: {rows} left out: {len(bad)}; the first: {bad[0]}", once_for=f"{rows} of {source}")


def _warn(message: str, once_for: str | None = None) -> None:
    """Warn once in the life of the process, whatever filters are set."""
    if (once_for or message) not in _warned:
        _warned.add(once_for or message)
        warnings.warn(f"{message} (going on without it)", stacklevel=2)
