"""Fetches a bundle by HTTP, bit by bit: what a broken connection left is gone on with, be it days later."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import autotune.bundles.format as format_
from autotune.store.fields import in_short
from autotune.values.errors import BundleError
from autotune.values.paths import download_folder, shown

_AT_ONCE = 1 << 16
_TIMEOUT_S = 30.0
_SLOW_S = 120.0
"""No server takes so long for _AT_ONCE bytes but one that means to keep its clients."""
_ATTEMPTS = 5
"""In a row that bring less than _AT_ONCE bytes."""


class _LostError(Exception):
    """A connection that ended early; the argument is why."""


@dataclass(frozen=True, slots=True)
class _State:
    """What the server told of the file: the tag of its version, and its size."""

    tag: str | None = None
    size: int | None = None


class Download:
    """The file behind an address, in the cache of the user.

    One process at a time may fetch; `bundles.pull` sees to that.

    Raises:
        BundleError: the address is none.
    """

    def __init__(self, url: str) -> None:
        reason = _why_no_address(url)
        if reason is not None:
            raise BundleError(f"{shown(url)} is no address of a bundle ({reason})")
        self._url = url
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        self.path = download_folder() / name
        self._state_file = self.path.with_suffix(".json")

    def fetch(self) -> Path:
        """The file, whole, as the server has it now; only what is missing or new is sent.

        Raises:
            BundleError: there is no such file, it is larger than any bundle, the connection is lost again and
                again, or the disk is full; what came is kept for the next call.
        """
        fruitless, last, most = 0, "", self._have()
        while fruitless < _ATTEMPTS:
            try:
                self._fetch()
                return self.path
            except _LostError as lost:
                last, fruitless = str(lost), fruitless + 1
                if self._have() >= most + _AT_ONCE:
                    fruitless, most = 0, self._have()
            except OSError as error:
                raise BundleError(f"{self.path} cannot be written ({error.strerror})") from error
        have = self._have()
        if not have:
            raise BundleError(
                f"{shown(self._url)} gives nothing ({last}); check the address or pull again later"
            )
        raise BundleError(
            f"{shown(self._url)}: the connection was lost after {have} bytes ({last}); "
            "pull again to go on from there"
        )

    def forget(self) -> None:
        """Have the next call fetch all of it: what is here is no bundle."""
        self.path.unlink(missing_ok=True)
        self._state_file.unlink(missing_ok=True)

    def _have(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def _state(self) -> _State:
        try:
            state = _State(**json.loads(self._state_file.read_bytes()))
        except (OSError, ValueError, TypeError):
            return _State()
        return state if isinstance(state.tag, str | None) else _State()

    def _fetch(self) -> None:
        state, have = self._state(), self._have()
        is_whole = state.size is not None and have == state.size
        headers: dict[str, str] = {}
        if state.tag is not None and have:
            unchanged = "If-None-Match" if state.tag.startswith('"') else "If-Modified-Since"
            headers = {unchanged: state.tag} if is_whole else _rest(have, state.tag)
        try:
            request = urllib.request.Request(self._url, headers=headers)
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                self._take(response, have)
        except urllib.error.HTTPError as error:
            if error.code == http.client.NOT_MODIFIED and is_whole:
                return
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                self.forget()
                raise _LostError("what was here is not what the server has") from error
            raise BundleError(f"{shown(self._url)}: {error.code} {_why(error.reason)}") from error
        except (ValueError, http.client.InvalidURL) as error:  # a redirection may lead anywhere
            raise BundleError(f"{shown(self._url)} answers what does not read ({in_short(error)})") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise _LostError(_why(getattr(error, "reason", error))) from error

    def _take(self, response: Any, have: int) -> None:
        headers: Mapping[str, str] = response.headers
        goes_on = response.status == http.client.PARTIAL_CONTENT
        if goes_on and not headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            self.forget()
            raise _LostError("the server sent another part than the one that was missing")
        begin = have if goes_on else 0
        told = headers.get("Content-Length", "")
        size = begin + int(told) if told.isdecimal() else None
        if size is not None and size > format_.LARGEST_BYTES:
            raise BundleError(
                f"{shown(self._url)} has {size} bytes; a bundle has {format_.LARGEST_BYTES} at most"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not goes_on:
            self.path.unlink(missing_ok=True)
            # Only the same version may be gone on with, and a weak tag does not tell the bytes.
            tag = headers.get("ETag") or headers.get("Last-Modified")
            self._note(_State(None if tag is None or tag.startswith("W/") else tag, size))
        with open(self.path, "ab") as file:
            got = begin + self._copy(response, file, begin)
        if size is None:
            self._note(_State(self._state().tag, got))
        elif got < size:
            raise _LostError(f"{got} bytes of {size} came")

    def _copy(self, response: Any, file: BinaryIO, begin: int) -> int:
        copied, due = 0, time.monotonic() + _SLOW_S
        while data := _read(response):
            if (copied + len(data)) // _AT_ONCE > copied // _AT_ONCE:
                due = time.monotonic() + _SLOW_S
            copied += len(data)
            if begin + copied > format_.LARGEST_BYTES:
                self.forget()
                raise BundleError(f"{shown(self._url)} has more than {format_.LARGEST_BYTES} bytes")
            file.write(data)
            file.flush()
            if time.monotonic() > due:
                raise BundleError(
                    f"{shown(self._url)} sent fewer than {_AT_ONCE} bytes in {_SLOW_S:.0f} s; "
                    "pull again to go on from there"
                )
        return copied

    def _note(self, state: _State) -> None:
        partial = self._state_file.with_name(f"{self._state_file.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(asdict(state)), encoding="utf-8")
            partial.replace(self._state_file)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read1(_AT_ONCE))
    except (OSError, http.client.HTTPException) as error:
        raise _LostError(_why(error)) from error


def _why(error: object) -> str:
    told = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return in_short(Exception(told))  # a server may say a lot


def _why_no_address(url: str) -> str | None:
    """Why nothing can be fetched there, None when it can."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "its host or port does not read"
    if not url.isascii() or not url.isprintable() or " " in url:
        return "a character in it has to be written as %XX"
    if not host:
        return "it names no host"
    # What is signed needs no password, and one in an address ends up in logs.
    return "it has a user's name; leave that out" if "@" in parts.netloc else None


def _rest(have: int, tag: str) -> dict[str, str]:
    return {"Range": f"bytes={have}-", "If-Range": tag}
