"""The pages as files: from the first one along its links, up to a number of pages."""

from __future__ import annotations

import hashlib
import shutil
from collections import deque
from pathlib import Path

from autotune.values.errors import AutotuneError, DatabaseError
from autotune.values.paths import Location
from autotune.web.query import Query
from autotune.web.site import TITLES, Site

_STATIC = Path(__file__).parent / "static"
_Where = tuple[str, tuple[tuple[str, str], ...]]
"""A page and its parameters."""


class _Files:
    """The names of the files, and which pages are still to be written."""

    def __init__(self, most: int) -> None:
        self.left: deque[_Where] = deque()
        self._names: dict[_Where, str] = {}
        self._most = most

    def link(self, page: str, pairs: tuple[tuple[str, str], ...]) -> str:
        """The name of the page's file, which is written if it is among the first."""
        if page.startswith("static/"):
            return page.removeprefix("static/")
        where = page, tuple(sorted(pairs))
        if where not in self._names:
            if len(self._names) >= self._most:
                return ""
            self._names[where] = _file_name(*where)
            self.left.append(where)
        return self._names[where]


def write_report(folder: Path, db: Location | None, most: int) -> int:
    """Write at most so many pages into the folder; how many it were.

    Raises:
        DatabaseError: the database cannot be read.
        AutotuneError: the folder cannot be written.
    """
    files = _Files(max(most, len(TITLES)))
    site = Site(db, files.link, live=False)
    with site.viewer.snapshot():
        pass  # what is wrong with it is told before anything is written
    for page in TITLES:
        files.link(page, ())
    written = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for asset in _STATIC.iterdir():
            shutil.copyfile(asset, folder / asset.name)
        while files.left:
            page, pairs = files.left.popleft()
            shown = site.page(page, Query(pairs))
            if shown.status == 503:
                raise DatabaseError(f"database {site.viewer.name} can no longer be read")
            (folder / files.link(page, pairs)).write_text(shown.html, encoding="utf-8")
            written += 1
    except OSError as error:
        raise AutotuneError(
            f"report {error.filename or folder} cannot be written ({error.strerror}); give another folder"
        ) from None
    return written


def _file_name(page: str, pairs: tuple[tuple[str, str], ...]) -> str:
    if not pairs:
        return "index.html" if page == "coverage" else f"{page}.html"
    digest = hashlib.sha256(repr(pairs).encode()).hexdigest()[:16]
    return f"{page}-{digest}.html"
