"""Fetches a bundle by HTTP, bit by bit: what a broken connection left is gone on with, be it days later."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import autotune.bundles.format as format_
from autotune.values.errors import BundleError
from autotune.values.paths import download_folder, shown

_AT_ONCE = 1 << 16
_TIMEOUT_S = 30.0
_ATTEMPTS = 5
"""In a row that bring nothing."""


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
    """

    def __init__(self, url: str) -> None:
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
                last = str(lost)
                have = self._have()
                fruitless = 0 if have > most else fruitless + 1
                most = max(most, have)
            except OSError as error:
                raise BundleError(f"{self.path} cannot be written ({error.strerror})") from error
        raise BundleError(
            f"{shown(self._url)}: the connection was lost after {self._have()} bytes ({last}); "
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
            return _State(**json.loads(self._state_file.read_bytes()))
        except (OSError, ValueError, TypeError):
            return _State()

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
            raise BundleError(f"{shown(self._url)}: {error.code} {error.reason}") from error
        except (ValueError, http.client.InvalidURL) as error:
            raise BundleError(f"{shown(self._url)} is no address ({error})") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise _LostError(str(getattr(error, "reason", error)) or type(error).__name__) from error

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
        copied = 0
        while data := _read(response):
            copied += len(data)
            if begin + copied > format_.LARGEST_BYTES:
                self.forget()
                raise BundleError(f"{shown(self._url)} has more than {format_.LARGEST_BYTES} bytes")
            file.write(data)
            file.flush()
        return copied

    def _note(self, state: _State) -> None:
        partial = self._state_file.with_name(f"{self._state_file.name}.{os.getpid()}")
        partial.write_text(json.dumps(asdict(state)), encoding="utf-8")
        partial.replace(self._state_file)


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read(_AT_ONCE))
    except (OSError, http.client.HTTPException) as error:
        raise _LostError(str(error) or type(error).__name__) from error


def _rest(have: int, tag: str) -> dict[str, str]:
    return {"Range": f"bytes={have}-", "If-Range": tag}
