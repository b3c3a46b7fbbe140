"""Signs bundles, and says whose signature makes one trusted."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from autotune.bundles.format import (
    Bundle,
    BundleContents,
    Seal,
    Signed,
    decode,
    digest_of,
    encode,
    seal_of,
    signature_line,
)
from autotune.bundles.keys import PublicKey, SigningKey
from autotune.values.errors import BundleError

# Clocks of a fleet differ by less; one that is a day ahead is wrong, and then nothing it signed can be dated.
_AHEAD_S = 86_400


def create(
    name: str, contents: BundleContents, folder: Path, key: SigningKey | None, valid_s: float | None = None
) -> tuple[Bundle, Path]:
    """Write the bundle to `NAME-HASH.bundle` in the folder, signed by the key, if any, for `valid_s`.

    Raises:
        BundleError: there is nothing to write, the bundle is there already, or it cannot be written; then
            nothing is left of it.
    """
    content = encode(name, contents)
    data = content if key is None else content + signature_line(sign(content, key, valid_s))
    bundle = decode(data, name)
    path = folder / f"{bundle.id.replace('@', '-')}.bundle"
    if path.exists():
        remedy = "use it" if key is None else f"move it away to have one that {key.public.name} signs"
        raise BundleError(f"{path} is there already, with these very records; {remedy}")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)  # so that a kill leaves none that is cut off
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise BundleError(f"{path} cannot be written ({error.strerror})") from error
    return bundle, path


def sign(content: bytes, key: SigningKey, valid_s: float | None = None) -> Signed:
    """The key's signature of a bundle's content, as of now."""
    at = int(time.time())
    unsigned = Signed(key.public.raw, b"", at, None if valid_s is None else at + int(valid_s))
    return Signed(unsigned.key, key.sign(unsigned.message(digest_of(content))), at, unsigned.until)


def open_trusted(data: bytes, where: str, keys: Sequence[PublicKey]) -> tuple[Bundle, PublicKey]:
    """The bundle of these bytes, which `where` calls, and the one of the keys that signed it.

    Its lines are read only then.

    Raises:
        BundleError: none of the keys signed it, or it does not read.
    """
    key = signer(seal_of(data, where), keys)
    return decode(data, where), key


def signer(bundle: Seal, keys: Sequence[PublicKey], now: float | None = None) -> PublicKey:
    """The first of the keys with a signature that counts at `now`, Unix seconds.

    Raises:
        BundleError: there is none; it says what is wrong with the last signature.
    """
    now = time.time() if now is None else now
    known = {key.raw: key for key in keys}
    why = "it has no signature; autotune bundle create --key NAME signs"
    for signed in bundle.signatures:
        key = known.get(signed.key)
        shown = PublicKey(signed.key, "?").fingerprint
        if key is None:
            why = f"nobody here trusts its key {shown}; autotune keys trust adds one that you know"
        elif not key.verifies(signed.signature, signed.message(bundle.digest)):
            why = f"it is not what {key.name} signed: it was edited"
        elif signed.at > now + _AHEAD_S:
            why = f"{key.name} signed it {_moment(signed.at)}, which is to come: a clock is wrong"
        elif signed.until is not None and signed.until < now:
            why = f"the signature of {key.name} expired {_moment(signed.until)}; have it signed again"
        else:
            return key
    raise BundleError(f"bundle {bundle.id} is not trusted: {why}")


def check_signatures(bundle: Seal) -> None:
    """Whether it is what was signed, by whomever.

    Raises:
        BundleError: it was edited since.
    """
    for signed in bundle.signatures:
        key = PublicKey(signed.key, "?")
        if not key.verifies(signed.signature, signed.message(bundle.digest)):
            raise BundleError(f"bundle {bundle.id} is not what key {key.fingerprint} signed: it was edited")


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
