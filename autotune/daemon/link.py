"""The way to the database, which may be away when the daemon starts and at any time after."""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from autotune.daemon.events import say
from autotune.records.misses import miss_file
from autotune.store.store import Store
from autotune.store.trouble import check_revision
from autotune.values.errors import DatabaseError

Result = TypeVar("Result")

_FIRST_WAIT_S = 0.5
_MOST_WAIT_S = 15.0
_LACKS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT}


class Link:
    """Does things with the store, shared by the daemon's threads, and says when it is away and back."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self.misses = miss_file(url)
        self._store: Store | None = None
        self._opening = threading.Lock()
        self._answered = time.monotonic()
        self.trouble: str | None = None

    @property
    def silent_s(self) -> float:
        """Seconds since the database did something for this process."""
        return time.monotonic() - self._answered

    def once(self, action: Callable[[Store], Result]) -> Result:
        """Do it now.

        Raises:
            DatabaseError: the database is away, full, or `is_final` of the error.
        """
        try:
            result = self._done(action)
        except DatabaseError as error:
            if str(error) != self.trouble:
                self.trouble = str(error)
                say("database away", logging.WARNING, reason=self.trouble)
            raise
        self._answered = time.monotonic()
        if self.trouble is not None:
            self.trouble = None
            say("database back")
        return result

    def until(
        self,
        over: threading.Event,
        action: Callable[[Store], Result],
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Result:
        """Do it as soon as the database can; before each wait for it, do what is `meanwhile` right.

        Raises:
            DatabaseError: it could not until `over` was set, or never will.
        """
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                return self.once(action)
            except DatabaseError as error:
                if is_final(error):
                    raise
                meanwhile()
                # Many daemons lose one server at the same moment; they shall not come back as one.
                if over.wait(wait_s * random.uniform(0.5, 1.0)):
                    raise
                wait_s = min(2 * wait_s, _MOST_WAIT_S)

    def close(self) -> None:
        """Close every connection."""
        if self._store is not None:
            self._store.close()

    def _done(self, action: Callable[[Store], Result]) -> Result:
        try:
            return action(self._reached())
        except Exception as error:
            lack = shortage(error)
            if lack is None:
                raise
            raise DatabaseError(f"the database cannot be used: {lack}") from error

    def _reached(self) -> Store:
        """The store; one that was there is never created anew, and its schema may have been upgraded."""
        with self._opening:
            if self._store is None:
                self._store = Store.open(self._url)
                return self._store
        found = self._store.database.revision()
        if found is None:
            reason = f"database {self._store.name} is gone; put it back"
            raise DatabaseError(reason) from FileNotFoundError(self._store.name)
        check_revision(self._store.name, found)
        return self._store


def is_final(error: DatabaseError) -> bool:
    """Whether no waiting mends it: neither driver nor system said it, so schema, address or file is bad."""
    return error.__cause__ is None or isinstance(error.__cause__, ModuleNotFoundError)


def shortage(error: Exception) -> str | None:
    """What the machine lacks, in its own words; None for an error of another kind."""
    lacks = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _LACKS)
    return str(error) or "no memory is left" if lacks else None
