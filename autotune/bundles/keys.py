"""Ed25519 keys: the ones that sign here, and the list of those whose signatures are trusted.

Both are files in the user's configuration folder. A public key is one line, `autotune-ed25519 BASE64 NAME`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.values.errors import TrustError
from autotune.values.paths import config_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_KIND = "autotune-ed25519"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_LARGEST_LIST = 1 << 20


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
        parts = line.split()
        try:
            kind, text, name = parts
            raw = base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            kind, raw, name = "", b"", ""
        if kind != _KIND or len(raw) != 32 or not _NAME.fullmatch(name):
            raise TrustError(
                f"{line.strip()[:80]!r} is no public key; give a line as autotune keys list shows"
            )
        return cls(raw, name)

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
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
    except FileExistsError:
        raise TrustError(f"key {name} is there already, in {path}; take another name") from None
    except OSError as error:
        raise TrustError(f"key {path} cannot be written ({error.strerror})") from error
    return SigningKey(name, private).public


def signing_key(name: str) -> SigningKey:
    """The key of the name.

    Raises:
        TrustError: it is not there, or does not read.
    """
    ed25519, serialization = _library()
    path = _private_file(name)
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(private, ed25519.Ed25519PrivateKey):
            raise ValueError("it is no Ed25519 key")
        return SigningKey(name, private)
    except FileNotFoundError:
        raise TrustError(f"key {name} is not in {path.parent}; run: autotune keys new {name}") from None
    except (OSError, ValueError, TypeError) as error:
        raise TrustError(f"key {path} does not read ({error})") from error


def own_keys() -> list[PublicKey]:
    """The public halves of the keys that sign here, by name."""
    return [signing_key(path.stem).public for path in sorted(_folder().glob("*.key"))]


def trusted_keys() -> list[PublicKey]:
    """The keys whose signatures are trusted, in the order of the list.

    Raises:
        TrustError: the list cannot be read, or a line of it.
    """
    path = _trusted_file()
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_LIST).decode()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeError) as error:
        raise TrustError(f"the list of trusted keys, {path}, cannot be read ({error})") from error
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return [PublicKey.parse(line) for line in lines]


def trust(key: PublicKey) -> None:
    """Add the key to the list; one that is there keeps its place and gets the new name.

    Raises:
        TrustError: the list cannot be read or written.
    """
    others = [each for each in trusted_keys() if each.raw != key.raw]
    _write_trusted([*others, key])


def distrust(which: str) -> PublicKey:
    """Take the key of the name or fingerprint off the list.

    Raises:
        TrustError: the list has no such key, or several.
    """
    known = trusted_keys()
    found = [key for key in known if which in (key.name, key.fingerprint)]
    if len(found) != 1:
        why = (
            f"{len(found)} trusted keys have that name; give the fingerprint"
            if found
            else "it is not trusted"
        )
        raise TrustError(f"key {which!r}: {why}; see: autotune keys list")
    _write_trusted(key for key in known if key is not found[0])
    return found[0]


def find_trusted(which: str) -> PublicKey:
    """The key of a line, of a file with the line, or of a trusted key's name or fingerprint.

    Raises:
        TrustError: there is none such.
    """
    if which.startswith(f"{_KIND} "):
        return PublicKey.parse(which)
    for key in trusted_keys():
        if which in (key.name, key.fingerprint):
            return key
    try:
        with open(which, "rb") as file:
            return PublicKey.parse(file.read(_LARGEST_LIST).decode(errors="replace"))
    except OSError as error:
        raise TrustError(
            f"key {which!r} is no trusted key's name or fingerprint, and no file ({error.strerror}); "
            "see: autotune keys list"
        ) from error


def _write_trusted(keys: Iterable[PublicKey]) -> None:
    path = _trusted_file()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise TrustError(f"the list of trusted keys, {path}, cannot be written ({error.strerror})") from error


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
