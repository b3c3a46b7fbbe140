"""Where look-up gets records and binaries: the user's database and the files that autotune ships.

Standard library only. No trouble with a source stops a look-up, whatever it is: it is warned of once, and the
others answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from autotune.jit.compiler import cached_by
from autotune.prediction.files import fit_files
from autotune.records.explanation import Explanation, explain
from autotune.store.fields import in_short
from autotune.store.reading import shipped_files, user_binary, user_records
from autotune.store.text import RecordFile
from autotune.values.device import Device
from autotune.values.errors import AutotuneError
from autotune.values.layer import Layer
from autotune.values.paths import Location, database_url, shown, sqlite_path
from autotune.values.record import SERVED, Record
from autotune.values.urls import why_no_database

if TYPE_CHECKING:
    from autotune.prediction.fit import Fit

_Result = TypeVar("_Result")
_Records = dict[Layer, list[Record]]

_warned: set[str] = set()


class Sources:
    """The records for a device: those that autotune ships, and those of the user's database.

    A layer's records are read when they are first asked for.
    A database that cannot be read is not asked again.
    """

    def __init__(self, device: Device, db: Location | None = None) -> None:
        """`db` is as for `Lookup`."""
        self._device = device
        self._path = _local_file(database_url(db))
        self._files = list(filter(None, map(self._opened, shipped_files())))
        self._shipped: _Records = {}
        self._stored: _Records = {}

    def shipped(self, layer: Layer) -> list[Record]:
        """The layer's records among those that autotune ships, of the preferred mode first, then the last."""
        if layer not in self._shipped:
            records = [record for file in self._files for record in self._read_shipped(file, layer)]
            self._shipped[layer] = _served(records[::-1])
        return self._shipped[layer]

    def stored(self, layer: Layer) -> list[Record]:
        """The layer's records in the user's database, of the preferred mode first, then the newest."""
        if layer not in self._stored:
            self._stored[layer] = _served(self._read(user_records, layer)[::-1])
        return self._stored[layer]

    def fit(self) -> Fit | None:
        """What predicts times on the device: the user's own fit, else the one that autotune ships."""
        paths = fit_files(self._device.name, self._path)
        if not paths:
            return None
        from autotune.prediction.fit import read

        found = (_tried(str(path), partial(read, path, self._device), None) for path in paths)
        return next(filter(None, found), None)

    def binary(self, unit_key: str) -> bytes | None:
        """The compiled kernel of the unit, None when there is none to be had without a compiler."""
        path = self._path
        stored = path and _tried(f"database {path}", lambda: user_binary(path, unit_key), None)
        made = (cached_by(file.environment.compiler, unit_key) for file in self._files)
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

    def _opened(self, path: Path) -> RecordFile | None:
        """The file when it is of the device's arch."""
        file = _tried(str(path), lambda: RecordFile(path), None)
        return file if file is not None and file.arch == self._device.arch else None

    def _read_shipped(self, file: RecordFile, layer: Layer) -> list[Record]:
        records: list[Record] = _tried(str(file.path), lambda: file.records(layer), [])
        _warn_of_bad(str(file.path), "lines", file.bad)
        return records


def _served(records: Iterable[Record]) -> list[Record]:
    """Those whose mode models may rely on, in the order of modes."""
    return sorted((each for each in records if each.mode in SERVED), key=lambda each: SERVED.index(each.mode))


def _local_file(url: str) -> Path | None:
    """The file of the database, None when it is another kind of database."""
    path = sqlite_path(url)
    if path is None:
        reason = why_no_database(url) or "model load reads a local SQLite file only"
        _warn(f"database {shown(url)}: {reason}; use --db with its path")
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
