"""Ed25519 keys: the ones that sign here, and the list of those whose signatures are trusted.

Both are files in the user's configuration folder. A public key is one line, `autotune-ed25519 BASE64 NAME`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import shlex
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from autotune.store.fields import in_short
from autotune.values.errors import TrustError
from autotune.values.paths import config_folder, lock_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_KIND = "autotune-ed25519"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_LARGEST = 1 << 20
"""Bytes of a file with keys."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What verifies a signature; `name` is for people, `fingerprint` says which key it is."""

    raw: bytes
    name: str

    @classmethod
    def parse(cls, line: str) -> PublicKey:
        """Read the line of a public key.

        Raises:
            TrustError: it is none.
        """
        key = _parsed(line)
        if key is None:
            raise TrustError(
                f"{line.strip()[:80]!r} is no public key; give a line as autotune keys list shows"
            )
        return key

    @property
    def fingerprint(self) -> str:
        """16 hex digits."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the key made the signature for the message."""
        ed25519, _ = _library()
        from cryptography.exceptions import InvalidSignature

        try:
            ed25519.Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def __str__(self) -> str:
        return f"{_KIND} {base64.b64encode(self.raw).decode()} {self.name}"


class SigningKey:
    """A private key of this user, by name."""

    def __init__(self, name: str, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = PublicKey(private.public_key().public_bytes_raw(), name)

    def sign(self, message: bytes) -> bytes:
        """The signature of the message."""
        return bytes(self._private.sign(message))


def new_key(name: str) -> PublicKey:
    """Make a key that signs; only this user can read its file.

    Raises:
        TrustError: there is one of the name, or its file cannot be written.
    """
    ed25519, serialization = _library()
    path = _private_file(name)
    private = ed25519.Ed25519PrivateKey.generate()
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise TrustError(f"key {name} is there already, in {path}; take another name") from None
    except OSError as error:
        raise TrustError(f"key {path} cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
    except OSError as error:
        path.unlink()
        raise TrustError(f"key {path} cannot be written ({error.strerror})") from error
    return SigningKey(name, private).public


def signing_key(name: str) -> SigningKey:
    """The key of the name.

    Raises:
        TrustError: it is not there, does not read, or others may read it too.
    """
    path = _private_file(name)
    key = _loaded(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise TrustError(
            f"key {path} may be read by others (mode {mode:04o}), who could sign as {name}; "
            f"run: chmod 600 {shlex.quote(str(path))}"
        )
    return key


def own_keys() -> list[PublicKey]:
    """The public halves of the keys that sign here, by name.

    Raises:
        TrustError: one does not read.
    """
    return [_loaded(path).public for path in sorted(_folder().glob("*.key"))]


def trusted_keys() -> list[PublicKey]:
    """The keys whose signatures are trusted, in the order of the list.

    Raises:
        TrustError: the list cannot be read, or a line of it.
    """
    return [key for _, key in _trusted_lines() if key is not None]


def trust(key: PublicKey) -> None:
    """Add the key to the list; one that is there gets the new name.

    Raises:
        TrustError: the list cannot be read or written.
    """
    with _changing():
        lines = [line for line, each in _trusted_lines() if each is None or each.raw != key.raw]
        _write_trusted([*lines, str(key)])


def distrust(which: str) -> PublicKey:
    """Take the key of the name or fingerprint off the list.

    Raises:
        TrustError: the list has no such key, or several.
    """
    with _changing():
        found = _trusted(which)
        if found is None:
            raise TrustError(f"key {which!r} is not trusted; see: autotune keys list")
        _write_trusted(line for line, each in _trusted_lines() if each != found)
    return found


def find_trusted(which: str) -> PublicKey:
    """The key of a line, of a file with the line, or of a trusted key's name or fingerprint.

    Raises:
        TrustError: there is none such, or several keys have the name.
    """
    if which.startswith(f"{_KIND} "):
        return PublicKey.parse(which)
    if (key := _trusted(which)) is not None:
        return key
    try:
        key = _parsed(_read(Path(which)).decode(errors="replace"))
    except (OSError, ValueError) as error:
        raise TrustError(
            f"key {which!r} is no trusted key's name or fingerprint, and no file ({_why(error)}); "
            "see: autotune keys list"
        ) from error
    if key is None:  # what it holds may be a private key, so it is not shown
        raise TrustError(f"{which} holds no public key; give a line as autotune keys list shows")
    return key


def _trusted(which: str) -> PublicKey | None:
    """The trusted key of the name or fingerprint, if any; TrustError where several have the name."""
    found = [key for key in trusted_keys() if which in (key.name, key.fingerprint)]
    if len(found) > 1:
        raise TrustError(f"key {which!r}: {len(found)} trusted keys have that name; give the fingerprint")
    return next(iter(found), None)


def _parsed(line: str) -> PublicKey | None:
    """The key of the line, None where there is none in it."""
    try:
        kind, text, name = line.split()
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    sound = kind == _KIND and len(raw) == 32 and _NAME.fullmatch(name)
    return PublicKey(raw, name) if sound else None


def _trusted_lines() -> list[tuple[str, PublicKey | None]]:
    """The list's lines, each with its key; a comment and an empty line have none."""
    path = _trusted_file()
    try:
        text = _read(path).decode()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise TrustError(f"the list of trusted keys, {path}, cannot be read ({_why(error)})") from error
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.strip()
        key = _parsed(line)
        if key is None and words and not words.startswith("#"):
            raise TrustError(f"{path}, line {number}: {words[:80]!r} is no public key; remove that line")
        found.append((line, key))
    return found


def _write_trusted(lines: Iterable[str]) -> None:
    path = _trusted_file().resolve()  # a link to a list that hosts share stays one
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise TrustError(f"the list of trusted keys, {path}, cannot be written ({error.strerror})") from error


def _changing() -> FileLock:
    """Held while the list is read and written again: another process may add a key meanwhile."""
    return FileLock(lock_folder() / "keys.lock")


def _loaded(path: Path) -> SigningKey:
    ed25519, serialization = _library()
    try:
        private = serialization.load_pem_private_key(_read(path), None)
        if not isinstance(private, ed25519.Ed25519PrivateKey):
            raise ValueError("it is no Ed25519 key")
        return SigningKey(path.stem, private)
    except FileNotFoundError:
        name = path.stem
        raise TrustError(f"key {name} is not in {path.parent}; run: autotune keys new {name}") from None
    except (OSError, ValueError, TypeError) as error:
        raise TrustError(f"key {path} does not read ({_why(error)})") from error


def _read(path: Path) -> bytes:
    """What is in a regular file; of a pipe a reader would wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no file")
    with path.open("rb") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST} bytes")
    return text


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or in_short(error)


def _private_file(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise TrustError(f"{name!r} is no name of a key; take letters, digits and . _ @ -")
    return _folder() / f"{name}.key"


def _folder() -> Path:
    return config_folder() / "keys"


def _trusted_file() -> Path:
    return config_folder() / "trusted.keys"


def _library() -> tuple[Any, Any]:
    """Ed25519 and serialization of cryptography, which only who signs or verifies needs."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise TrustError(
            f"signatures need the Python module {error.name}; run: pip install 'autotune-int4[fleet]'"
        ) from error
    return ed25519, serialization
