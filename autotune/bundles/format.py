"""The file of a bundle: records as JSON Lines, named by their content, with signatures at the end.

A line of its own begins the file and says how much there is; another one begins each group of records of one
device model and environment. Binaries are lines too. Nothing in a bundle names a path and nothing in it is
compressed, so that reading one writes no file and takes no more memory than a few times its size.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.records.exchange import record_line, trial_line
from autotune.store.entries import Entry, TrialEntry
from autotune.store.fields import in_short
from autotune.store.rows import device_of, environment_of, record_of, trial_of
from autotune.store.trouble import known_revisions
from autotune.values.errors import BundleError
from autotune.values.record import Binary

FORMAT = 1
LARGEST_BYTES = 256 << 20
"""No bundle is larger: 15 times one with the records and binaries of eight presets on a GPU."""
LONGEST_LINE = 16 << 20
_LARGEST_END = 64 << 10
_LAST_MOMENT = 253_402_300_799
"""The end of the year 9999, after which no date reads."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST_DIGITS = 12


@dataclass(frozen=True, slots=True)
class BundleContents:
    """What a bundle holds; entries have their binaries where it has them."""

    entries: Sequence[Entry]
    attempts: Sequence[TrialEntry] = ()


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature by a key of 32 bytes, and the Unix seconds between which it counts."""

    key: bytes
    signature: bytes
    at: int
    until: int | None

    def message(self, digest: str) -> bytes:
        """What is signed for a content of this hash."""
        return f"autotune bundle {digest} {self.at} {self.until}".encode()


@dataclass(frozen=True, slots=True)
class Seal:
    """What is known of a bundle before its lines are read, which only those of a friend deserve.

    `digest` is the SHA-256 of the content, which the signatures sign.
    """

    name: str
    digest: str
    signatures: tuple[Signed, ...]

    @property
    def id(self) -> str:
        """`llama-h200@1f2e3d4c5b6a`."""
        return f"{self.name}@{self.digest[:_DIGEST_DIGITS]}"


@dataclass(frozen=True, slots=True)
class Bundle(Seal):
    """A bundle as its file says; whether that can be trusted is another question."""

    contents: BundleContents


def encode(name: str, contents: BundleContents) -> bytes:
    """The content: the same bytes for the same name, records, trials and binaries, whatever their order.

    Raises:
        BundleError: the name is none, or there are no records, or too many.
    """
    if not _NAME.fullmatch(name):
        raise BundleError(f"{name!r} is no name of a bundle; take letters, digits and . _ -")
    if not contents.entries:
        raise BundleError(f"bundle {name} would be empty: no record is of these devices and layers")
    body = b"".join(_encoded(line) for line in _lines(contents))
    header = {
        "autotune_bundle": FORMAT,
        "schema": known_revisions()[-1],
        "name": name,
        "records": len(contents.entries),
        "trials": len(contents.attempts),
        "binaries": len(_binaries(contents)),
        "bytes": len(body),
    }
    content = _encoded(header) + body
    if len(content) + _LARGEST_END > LARGEST_BYTES:
        raise BundleError(
            f"bundle {name} would have {len(content)} bytes, more than {LARGEST_BYTES}; split it"
        )
    return content


def signature_line(signed: Signed) -> bytes:
    """The line that the signature adds to the file."""
    texts = {"key": signed.key.hex(), "signature": signed.signature.hex()}
    return _encoded({**texts, "at": signed.at, "until": signed.until})


def digest_of(content: bytes) -> str:
    """The hash that names a content and that signatures sign."""
    return hashlib.sha256(content).hexdigest()


def read_bundle(path: Path) -> Bundle:
    """The bundle in a file; its hash is that of the bytes that were read.

    Raises:
        BundleError: it cannot be read, is too large, cut off, edited, of a newer autotune, or no bundle.
    """
    return decode(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """What is in the file.

    Raises:
        BundleError: it cannot be read, or is larger than any bundle.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise BundleError(f"{path} is no file")
        if state.st_size > LARGEST_BYTES:
            raise BundleError(f"{path} has {state.st_size} bytes; a bundle has {LARGEST_BYTES} at most")
        with path.open("rb") as file:
            return file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from error


def decode(data: bytes, where: str) -> Bundle:
    """The bundle of these bytes; `where` is what messages call them.

    Raises:
        BundleError: as `read_bundle`.
    """
    seal, (begin, end), header = _sealed(data, where)
    try:
        contents = _Parser().parse(data[begin:end].splitlines(keepends=True))
    except Exception as error:  # whatever is in it
        raise BundleError(f"{where} is damaged: {in_short(error)}") from error
    sizes = (len(contents.entries), len(contents.attempts), len(_binaries(contents)))
    for size, name in zip(sizes, ("records", "trials", "binaries"), strict=True):
        if size != header[name]:
            raise BundleError(f"{where} is damaged: it has {size} {name}, and tells of {header[name]}")
    return Bundle(seal.name, seal.digest, seal.signatures, contents)


def seal_of(data: bytes, where: str) -> Seal:
    """The seal of the bundle of these bytes.

    Raises:
        BundleError: it is cut off, of a newer autotune, or no bundle.
    """
    return _sealed(data, where)[0]


def _sealed(data: bytes, where: str) -> tuple[Seal, tuple[int, int], dict[str, Any]]:
    """The seal, where the lines of the content begin and end, and the first line."""
    begin = data.find(b"\n", 0, _LARGEST_END) + 1
    header = _header(data[:begin], where)
    end = begin + header["bytes"]
    if len(data) < end:
        raise BundleError(f"{where} is cut off: it has {len(data)} bytes of {end}; fetch it again")
    if len(data) - end > _LARGEST_END:
        raise BundleError(f"{where} has {len(data) - end} bytes behind its end; it is damaged")
    signatures = tuple(_signed(line, where) for line in data[end:].splitlines())
    return Seal(header["name"], digest_of(data[:end]), signatures), (begin, end), header


def _header(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        number, schema = row["autotune_bundle"], row["schema"]
        if type(number) is not int or not isinstance(schema, str):
            raise ValueError
    except Exception:
        raise BundleError(f"{where} is no bundle: its first line is not that of one") from None
    if number > FORMAT or schema > known_revisions()[-1]:
        raise BundleError(
            f"{where} was made by a newer autotune (format {number}, schema {schema[:20]}); upgrade autotune"
        )
    sizes = [row.get(name) for name in ("records", "trials", "binaries", "bytes")]
    sound = all(type(size) is int and 0 <= size <= LARGEST_BYTES for size in sizes)
    name = row.get("name")
    if number < 1 or not sound or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BundleError(f"{where} is damaged: its first line does not read")
    return dict(row)


def _signed(line: bytes, where: str) -> Signed:
    try:
        row = json.loads(line)
        signed = Signed(bytes.fromhex(row["key"]), bytes.fromhex(row["signature"]), row["at"], row["until"])
        moments = [signed.at] if signed.until is None else [signed.at, signed.until]
        whole = all(type(each) is int and 0 <= each <= _LAST_MOMENT for each in moments)
    except Exception:
        whole = False
    if not whole:
        raise BundleError(f"{where} is damaged: a signature in it does not read")
    return signed


def _lines(contents: BundleContents) -> Iterable[dict[str, Any]]:
    groups: dict[str, tuple[list[Entry], list[TrialEntry]]] = {}
    for entry in contents.entries:
        groups.setdefault(_group(entry), ([], []))[0].append(entry)
    for attempt in contents.attempts:
        groups.setdefault(_group(attempt), ([], []))[1].append(attempt)
    for text in sorted(groups):
        yield json.loads(text)
        entries, attempts = groups[text]
        for entry in sorted(entries, key=lambda each: _key(each)[2:]):
            unit = {} if entry.binary is None else {"unit_key": entry.binary.unit_key}
            yield record_line(entry.record) | unit
        lines = (trial_line(attempt.trial) for attempt in attempts)
        yield from sorted(lines, key=lambda line: json.dumps(line))
    for _, binary in sorted(_binaries(contents).items()):
        row = {name: getattr(binary, name) for name in ("unit_key", "arch", "compiler", "sha256")}
        yield row | {"cubin": base64.b64encode(binary.cubin).decode()}


def _group(of: Entry | TrialEntry) -> str:
    device = asdict(of.device)
    del device["index"]
    environment = asdict(of.environment)
    environment["sources"] = dict(sorted(of.environment.sources.items()))
    return json.dumps({"device": device, "environment": environment})


def _binaries(contents: BundleContents) -> dict[str, Binary]:
    return {entry.binary.unit_key: entry.binary for entry in contents.entries if entry.binary is not None}


def _key(entry: Entry) -> tuple[Any, ...]:
    record = entry.record
    return record.device, record.arch, record.problem, record.mode, record.source_hash


def _encoded(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


class _Parser:
    """Reads the lines between the first and the signatures; anything odd in one is an error."""

    def __init__(self) -> None:
        self._of: Any = None
        self._entries: dict[tuple[Any, ...], tuple[Entry, str | None]] = {}
        self._attempts: list[TrialEntry] = []
        self._kernels: dict[str, Binary] = {}

    def parse(self, lines: Sequence[bytes]) -> BundleContents:
        """What they hold."""
        for number, line in enumerate(lines, start=2):
            try:
                if len(line) > LONGEST_LINE or not line.endswith(b"\n"):
                    raise ValueError(f"it has {len(line)} bytes and no end")
                self._add(json.loads(line))
            except Exception as error:
                raise ValueError(f"line {number} does not read ({in_short(error)})") from error
        if missing := {unit for _, unit in self._entries.values() if unit is not None} ^ self._kernels.keys():
            raise ValueError(f"binary {min(missing)[:12]} is missing, or nobody's")
        entries = [
            entry if unit is None else entry._replace(binary=self._kernels[unit])
            for entry, unit in self._entries.values()
        ]
        return BundleContents(entries, self._attempts)

    def _add(self, row: dict[str, Any]) -> None:
        if "environment" in row:
            self._of = device_of(row["device"]), environment_of(row["environment"])
        elif "cubin" in row:
            self._add_binary(row)
        elif "samples_us" in row:
            samples = row["samples_us"]
            packed = {"samples": struct.pack(f"<{len(samples)}f", *samples)}
            self._attempts.append(TrialEntry(trial_of({**row, **packed}), *self._of))
        else:
            device, environment = self._of
            record = record_of({"evidence": None, **row}, device.name, device.arch, row["source_hash"])
            entry = Entry(record, device, environment)
            if _key(entry) in self._entries:
                raise ValueError(f"{record.problem} is there twice")
            self._entries[_key(entry)] = entry, row.get("unit_key")

    def _add_binary(self, row: dict[str, Any]) -> None:
        names = (row["unit_key"], row["arch"], row["compiler"])
        binary = Binary(*names, base64.b64decode(row["cubin"], validate=True))
        sound = all(isinstance(name, str) and name.isprintable() for name in names)
        if not sound or binary.sha256 != row["sha256"] or not binary.cubin.startswith(b"\x7fELF"):
            raise ValueError("the binary is not the one that was stored")
        if binary.unit_key in self._kernels:
            raise ValueError(f"binary {binary.unit_key[:12]} is there twice")
        self._kernels[binary.unit_key] = binary
