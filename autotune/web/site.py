"""The pages: their names, what each shows, and how a template and links make HTML of it.

A page is a module of this room with `view(site, pages, query)`, which returns what its template of the same
name is given. `serve` and `report` differ in the links only.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from autotune.store.pages import Pages, looked_at
from autotune.store.viewing import Viewer
from autotune.values.errors import AutotuneError
from autotune.values.paths import Location, database_url
from autotune.web import compare, coverage, figures, kernels, problem, queue
from autotune.web.query import NoPage, Query, scheme_of
from autotune.web.svg import seconds
from autotune.web.tables import check_order

View = Callable[["Site", Pages, Query], dict[str, Any]]
VIEWS: dict[str, View] = {
    "coverage": coverage.view,
    "problem": problem.view,
    "compare": compare.view,
    "kernels": kernels.view,
    "queue": queue.view,
    "figures": figures.view,
}
TITLES = {
    "coverage": "Coverage",
    "compare": "Compare",
    "kernels": "Kernels",
    "queue": "Queue",
    "figures": "Figures",
}
"""Of the pages that the bar at the top links to."""
Link = Callable[[str, tuple[tuple[str, str], ...]], str]
"""The address of a page and its parameters; empty where there is no such page."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A page as HTML with the status that HTTP has for it, and in a line what is `wrong`, if anything is."""

    html: str
    status: int = 200
    wrong: str = ""


def address(page: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """Where `serve` has the page."""
    path = "/" if page == "coverage" else f"/{page}"
    return f"{path}?{urlencode(pairs)}" if pairs else path


class Site:
    """Makes pages of a database; `live` pages ask the server for news."""

    def __init__(self, db: Location | None, link: Link = address, live: bool = True) -> None:
        """Opens nothing yet.

        Raises:
            DatabaseError: `db` names no database.
        """
        self.viewer, self.url, self.live = Viewer(db), database_url(db), live
        self._link = link
        self._written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
        self._templates = Environment(
            loader=PackageLoader("autotune.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(seconds=seconds, quoted=shlex.quote)
        self._templates.globals["scheme_of"] = scheme_of

    def page(self, name: str, query: Query, template: str | None = None) -> Shown:
        """The page, or one that says in a line why there is none."""
        try:
            with looked_at(self.viewer) as pages:
                content = VIEWS[name](self, pages, query)
            check_order(query, content.get("tables", {}))
            return Shown(self._html(template or name, name, query, content, pages.bad))
        except NoPage as error:
            return self._error(str(error), 404, name, query, error)
        except AutotuneError as error:
            return self.trouble(str(error), 503)

    def trouble(self, message: str, status: int) -> Shown:
        """A page that says what is wrong."""
        return self._error(message, status, "", Query(), None)

    def link(self, page: str, /, **values: object) -> str:
        """The address of a page; a list is a parameter that comes several times, None is none."""
        pairs: list[tuple[str, str]] = []
        for name, value in values.items():
            several = value if isinstance(value, list | tuple) else [value]
            pairs += [(name, str(each)) for each in several if each not in (None, "")]
        return self._link(page, tuple(pairs))

    def _error(self, message: str, status: int, name: str, query: Query, other: NoPage | None) -> Shown:
        known = {"parameter": other.name, "known": list(other.known.items())} if other else {"known": []}
        content = {"message": message, "status": status, **known}
        return Shown(self._html("error", name, query, content, []), status, message)

    def _html(self, template: str, name: str, query: Query, content: dict[str, Any], bad: list[str]) -> str:
        def here(**changes: object) -> str:
            now: dict[str, object] = {key: query.all(key) for key, _ in query.pairs}
            return self.link(name, **(now | {"page": None} | changes))

        return self._templates.get_template(f"{template}.html").render(
            name=name,
            titles=TITLES,
            link=self.link,
            here=here,
            database=self.viewer.name,
            live=self.live,
            written=self._written,
            bad=bad,
            **content,
        )
