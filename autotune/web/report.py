"""The pages as files: from the first one along its links, up to a number of them."""

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
OTHERS = 100
"""Pages at most that are of no problem: maps of every model and colour, families of every device."""
_Where = tuple[str, tuple[tuple[str, str], ...]]
"""A page and its parameters."""


class _Files:
    """The names of the files, and which pages are still to be written."""

    def __init__(self, problems: int) -> None:
        self.left: deque[_Where] = deque()
        self._names: dict[_Where, str] = {}
        self._room = {True: problems, False: OTHERS}

    def link(self, page: str, pairs: tuple[tuple[str, str], ...]) -> str:
        """The name of the page's file, empty when there are enough of its kind without it."""
        if page.startswith("static/"):
            return page.removeprefix("static/")
        where, of_problem = (page, tuple(sorted(pairs))), page == "problem"
        if where not in self._names:
            if not self._room[of_problem]:
                return ""
            self._room[of_problem] -= 1
            self._names[where] = _file_name(*where)
            self.left.append(where)
        return self._names[where]


def write_report(folder: Path, db: Location | None, problems: int) -> int:
    """Write the pages into the folder, those of at most so many problems; how many pages it were.

    Raises:
        DatabaseError: the database cannot be read.
        AutotuneError: the folder cannot be written.
    """
    files = _Files(problems)
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
