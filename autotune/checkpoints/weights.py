"""The safetensors files of a model's folder: which they are, and the tensors that their headers name."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from autotune.values.errors import FormatError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DEEPEST = 100
"""Levels of JSON; real files have about six, and Python's own limit is a crash."""
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of one tensor; `dtype` as there: F16, BF16, F32, I32, ..."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a folder: `name` is the single file, or the index that says where each tensor is."""

    folder: Path
    name: str
    placed: dict[str, str]
    """The file of each tensor, by the index; empty for a single file."""

    @property
    def files(self) -> list[Path]:
        """The safetensors files."""
        return [self.folder / name for name in sorted(set(self.placed.values())) or [self.name]]


def find_weights(folder: Path) -> Weights:
    """The weights of the folder; a single file, or a single index, may have any name.

    Raises:
        FormatError: there are none, or the index places a tensor outside of the folder.
    """
    name = _name(folder)
    if name is None:
        suffixes = ("safetensors", "bin", "pt")
        found = sorted(file.name for suffix in suffixes for file in folder.glob(f"*.{suffix}"))
        held = f"found {', '.join(found)}" if found else "found no weights"
        raise FormatError(f"{folder} has no {SINGLE} or {INDEX} ({held}); only safetensors are read")
    return Weights(folder, name, _placed(folder / name) if name.endswith(".json") else {})


def has_weights(folder: Path) -> bool:
    """Whether the folder has safetensors files, or an index of some."""
    return any(True for suffix in ("", ".index.json") for _ in folder.glob(f"*.safetensors{suffix}"))


def _name(folder: Path) -> str | None:
    for name in (SINGLE, INDEX):
        if (folder / name).is_file():
            return name
    for pattern in ("*.safetensors.index.json", "*.safetensors"):
        found = [path.name for path in folder.glob(pattern)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _placed(index: Path) -> dict[str, str]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise FormatError(f"{index} has no weight_map; download it again")
    for name, file in placed.items():
        # A link may lead out of the folder, as those in huggingface_hub's cache do; a name may not.
        path = PurePosixPath(file) if isinstance(file, str) and "\0" not in file else None
        if path is None or path.is_absolute() or ".." in path.parts:
            raise FormatError(f"{index} places {name} in {file!r}, which is no file of its folder")
    return placed


def read_headers(files: Iterable[Path]) -> dict[str, Header]:
    """The header of every tensor of the files, by name.

    Raises:
        FormatError: a file is missing, is no safetensors file, or is shorter than it says.
    """
    found: dict[str, Header] = {}
    for file in files:
        found |= _headers_of(file)
    return found


def expect_file(file: Path) -> None:
    """FormatError unless it is a regular file, which opening and reading cannot block."""
    try:
        mode = os.stat(file).st_mode
    except (OSError, ValueError) as error:
        raise FormatError(f"{file} does not read: {_reason(error)}") from None
    if not stat.S_ISREG(mode):
        raise FormatError(f"{file} is not a regular file")


def read_json(file: Path) -> dict[str, Any]:
    """The object that the file holds.

    Raises:
        FormatError: it cannot be read, or holds something else.
    """
    expect_file(file)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{file} does not read as JSON: {_reason(error)}") from None
    if not isinstance(document, dict):
        raise FormatError(f"{file} does not read as a JSON object")
    if _is_deep(document):
        raise FormatError(f"{file} is nested more than {_DEEPEST} levels deep")
    return document


def _headers_of(file: Path) -> dict[str, Header]:
    expect_file(file)
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            start = _LENGTH_BYTES + length
            if not _LENGTH_BYTES < start <= size:
                raise ValueError(f"it has {size} bytes, of which {length} are to be its header")
            document = json.loads(stream.read(length))
        headers, end = _parsed(document)
        if start + end > size:
            raise ValueError(f"it has {size} of {start + end} bytes")
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{file} does not read: {_reason(error)}; download it again") from None
    return headers


def _parsed(document: Any) -> tuple[dict[str, Header], int]:
    """The headers, and where the last tensor ends, in bytes behind them."""
    headers, end = {}, 0
    if not isinstance(document, dict):
        raise ValueError("its header is not an object")
    for name, entry in document.items():
        if name == "__metadata__":
            continue
        try:
            shape, last = tuple(entry["shape"]), entry["data_offsets"][1]
            if not isinstance(entry["dtype"], str):
                raise TypeError(entry["dtype"])
            headers[name] = Header(entry["dtype"], shape)
        except (LookupError, TypeError):
            raise ValueError(f"its header does not describe {name}") from None
        if not all(type(number) is int and number >= 0 for number in (*shape, last)):
            raise ValueError(f"its header gives {name} the shape {list(shape)}, which ends at {last!r}")
        end = max(end, last)
    return headers, end


def _is_deep(document: object) -> bool:
    level: list[object] = [document]
    for _ in range(_DEEPEST):
        held = [each for each in level if isinstance(each, (dict, list))]
        level = [child for each in held for child in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return False
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)
