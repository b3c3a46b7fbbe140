"""What a kernel source says, whatever its files are called: the code that decides the compiled kernel."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from autotune.values.errors import CompileError
from autotune.values.paths import shipped

_INCLUDE = re.compile(r"# ?include\b ?(.*)")

_Stamps = dict[Path, int]
_known: dict[Path, tuple[_Stamps, str]] = {}


@functools.cache
def source_folder() -> Path:
    """Where sources, and what they include, are named from."""
    return shipped("csrc/cuda")


def source_hash(source: str) -> str:
    """Hash, of 16 hex digits, of the code of a source and of all that it includes, each file once.

    Names and folders of files, comments and spaces do not count: records stay in force when only these
    change. `source` is a file of csrc/cuda, or an absolute path; what is no file has no code, which is
    for the compiler to report.

    Raises:
        CompileError: an include does not name such a file, so that its code is not known.
    """
    path = source_folder() / source
    stamps, found = _known.get(path, ({}, ""))
    # By time of change, because a sweep asks once per candidate.
    if not stamps or stamps != _stamps(stamps):
        files: _Stamps = {}
        found = digest(tuple(_code(path, files)))[:16]
        _known[path] = files, found
    return found


def digest(value: object) -> str:
    """SHA-256, in hex digits, of a value made of texts, numbers and tuples."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _stamps(files: Iterable[Path]) -> _Stamps:
    """When each was changed; 0 for what is no file."""
    return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> int:
    try:
        found = os.stat(file)
    except OSError:
        return 0
    return found.st_mtime_ns if stat.S_ISREG(found.st_mode) else 0


def _code(file: Path, seen: _Stamps) -> Iterator[str]:
    """The lines of a file and, where it includes one that was not seen before, of that one instead."""
    if file in seen:
        return
    seen |= _stamps([file])
    for line in file.read_text(encoding="utf-8").splitlines() if seen[file] else ():
        code = " ".join(line.partition("//")[0].split())
        include = _INCLUDE.fullmatch(code)
        if include:
            yield from _code(_included(include[1], file), seen)
        elif code:
            yield code


def _included(name: str, file: Path) -> Path:
    """The file that a compiler takes: beside the one that includes it, else in the folder of all."""
    for folder in (file.parent, source_folder()) if re.fullmatch('".+"', name) else ():
        if (folder / name.strip('"')).is_file():
            return folder / name.strip('"')
    raise CompileError(f'{file} includes {name}, which is no file of {source_folder()}; use #include "file"')
