"""Reads files of records; db/README.md has their fields. Standard library only: model load reads them.

A file of a device has thousands of records, of which a model uses those of a few layers. Lines are sorted, so
those of a layer are found by bisection, and hardly any others are read.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from autotune.store.fields import in_short
from autotune.store.rows import SIZES, device_of, environment_of, problem_of, record_of
from autotune.store.trouble import check_known
from autotune.values.device import Device
from autotune.values.errors import DatabaseError
from autotune.values.layer import Layer
from autotune.values.record import Environment, Record

SAMPLES = ".samples.jsonl"
"""How the name of a file of trials ends, which no look-up reads."""

# Five times the records of every preset in every scheme.
_LARGEST_FILE = 64 << 20
_LONGEST_LINE = 1 << 18
# Damaged lines in a row that a look-up passes over, so that no file keeps a model waiting.
_MOST_DAMAGED = 1000
# Bisection looks at the lines behind these places only; some lines lie between two.
_STEP_BYTES = 4096

_HEAD = re.compile(
    rb'\{"n": ?(\d{1,9}), ?"k": ?(\d{1,9}), ?'
    rb'("scheme": ?"[\w-]+"|"group_size": ?\d{1,9}, ?"dtype": ?"\w+", ?"zero_point": ?(?:true|false)),'
)
"""How the line of a record begins, today and as autotune 0.1 wrote it."""
_EVIDENCE = re.compile(rb',"evidence":\{(?:("mode":"\w+"),)?')
"""How its end begins; autotune 0.1 had the mode in the evidence."""

_Value = TypeVar("_Value")
_Size = tuple[float, ...]
"""n and k of a line, by which lines are sorted first."""
_END: _Size = (math.inf,)


class _Origin(NamedTuple):
    """Where a file's records come from."""

    model: Device
    environment: Environment


class RecordFile:
    """A device's file of records; each call opens it and reads what it needs.

    A record that does not read is left out; `bad` says why.

    Raises:
        DatabaseError: the file cannot be read, or its first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad: list[str] = []
        with _opened(path) as file:
            origin = _origin(path, file.readline(_LONGEST_LINE))
        self._origin, self.arch, self.environment = origin, origin.model.arch, origin.environment

    def records(self, layer: Layer, evidence: bool = False) -> list[Record]:
        """The layer's records in the order of the file, without their evidence unless it is asked for.

        Raises:
            DatabaseError: the file cannot be read any more.
        """
        found: list[Record] = []
        with _opened(self.path) as file:
            for offset, line in _lines_of(file, layer):
                try:
                    found.append(
                        _parsed(line if evidence else _without_evidence(line), _record, self._origin)
                    )
                except DatabaseError as error:
                    file.seek(0)
                    number = 1 + file.read(offset).count(b"\n")
                    self.bad.append(f"{self.path}, line {number}: {error}")
        return [record for record in found if record.problem.layer == layer]

    @functools.cached_property
    def layers(self) -> frozenset[Layer]:
        """The layers that lines name; the beginnings of all lines are read for them, once.

        Raises:
            DatabaseError: as `records`.
        """
        found, head = set(), b"\n"
        with _opened(self.path) as file:
            for line in file:
                if line.startswith(head):
                    continue
                match = _HEAD.match(line)
                if match:
                    head = match[0]
                    found.add(_layer(head))
        return frozenset(layer for layer in found if layer is not None)


def read_text(
    path: Path, arch: str | None = None, bad: list[str] | None = None
) -> tuple[Environment, list[Record]]:
    """The environment and the records of a file; no records when the file is of another arch than `arch`.

    A record that does not read is left out, and the reason goes to `bad`, where there is such a list.

    Raises:
        DatabaseError: the file cannot be read, or its first line; or another line, and there is no `bad`;
            the message names the line.
    """
    records: list[Record] = []
    with _opened(path) as file:
        origin = _origin(path, file.readline(_LONGEST_LINE))
        for number, line in enumerate(file if arch in (None, origin.model.arch) else (), start=2):
            try:
                records.append(_parsed(line, _record, origin))
            except DatabaseError as error:
                message = f"{path}, line {number}: {error}"
                if bad is None:
                    raise DatabaseError(message) from error
                bad.append(message)
    return origin.environment, records


def device_of_text(path: Path) -> Device:
    """The device model of a file, whose sizes are 0 where the file does not tell them.

    Raises:
        DatabaseError: the file cannot be read, or its first line.
    """
    with _opened(path) as file:
        return _origin(path, file.readline(_LONGEST_LINE)).model


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > _LARGEST_FILE:
            raise DatabaseError(f"{path} is no file of records: it is larger than any, or no file at all")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise DatabaseError(f"{path} cannot be read ({error.strerror})") from error


def _lines_of(file: BinaryIO, layer: Layer) -> list[tuple[int, bytes]]:
    """The layer's lines with their places, and lines between or just ahead of them that may be its own."""
    wanted = (layer.n, layer.k)
    found: list[tuple[int, bytes]] = []
    _go_ahead_of(file, wanted)
    for offset, line, head in _lines(file):
        size = wanted if head is None else _size(head)
        if size < wanted:
            found.clear()
        elif size > wanted:
            break
        elif head is None or _layer(head[0]) == layer:
            found.append((offset, line))
    return found


def _go_ahead_of(file: BinaryIO, wanted: _Size) -> None:
    """Go to a line a little ahead of the first one whose size is not below `wanted`."""

    def size_beyond(offset: int) -> _Size:
        file.seek(offset)
        file.readline()
        return next((_size(head) for _, _, head in _lines(file) if head is not None), _END)

    places = range(0, file.seek(0, os.SEEK_END), _STEP_BYTES)
    file.seek(places[max(bisect_left(places, wanted, key=size_beyond) - 1, 0)])
    file.readline()


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes, re.Match[bytes] | None]]:
    """The place of each line from here on, the line, and its head, None when it has none."""
    offset, damaged = file.tell(), 0
    while damaged < _MOST_DAMAGED and (line := file.readline()):
        head = _HEAD.match(line)
        damaged = 0 if head else damaged + 1
        yield offset, line, head
        offset += len(line)


def _size(head: re.Match[bytes]) -> _Size:
    return int(head[1]), int(head[2])


@functools.lru_cache(maxsize=4096)
def _layer(head: bytes) -> Layer | None:
    """The layer of a line's beginning, None where there is none such."""
    try:
        return problem_of(json.loads(head + b'"m":1}')).layer
    except DatabaseError:
        return None


def _origin(path: Path, line: bytes) -> _Origin:
    """What the first line says."""
    try:
        schema, origin = _parsed(line, lambda row: (row.get("schema"), _origin_of(row)))
    except DatabaseError as error:
        raise DatabaseError(f"{path}, line 1: {error}") from error
    if schema is not None:  # files of autotune 0.1 tell none
        check_known(str(path), str(schema))
    return origin


def _origin_of(row: dict[str, Any]) -> _Origin:
    kind = "cuda" if str(row["arch"]).startswith("sm_") else "cpu"
    model = device_of({**dict.fromkeys(SIZES, 0), **row, "kind": kind, "name": row["device"]})
    return _Origin(model, environment_of(row))


def _parsed(line: bytes, make: Callable[..., _Value], *more: Any) -> _Value:
    try:
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"it has {len(line)} bytes")
        return make(json.loads(line.decode()), *more)
    except Exception as error:  # whatever is in the line
        raise DatabaseError(f"not a record ({in_short(error)})") from error


def _without_evidence(line: bytes) -> bytes:
    """The line up to its evidence, where that comes last, as we write it: most of a line is evidence."""
    evidence = _EVIDENCE.search(line)
    if evidence is None or not line.rstrip().endswith(b"}}"):
        return line
    return line[: evidence.start()] + (b"," + evidence[1] if evidence[1] else b"") + b"}"


def _record(row: dict[str, Any], origin: _Origin) -> Record:
    # Files from before kernels had names of their own tell the source of each family.
    source_hash = row.get("source_hash") or origin.environment.sources[row["config"].partition(":")[0]]
    older = {"mode": (row.get("evidence") or {}).get("mode", "graph"), "evidence": None}
    model = origin.model
    return record_of({**older, **row}, model.name, model.arch, source_hash, origin.environment)
