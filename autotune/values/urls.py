"""What names a database: whether it is a URL, what the URL says, and how it is shown without its secrets."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, unquote_plus

_SQLITE = "sqlite:///"
_SERVERS = ("postgresql", "postgres")

_LIKE_URL = re.compile(
    r"(?!\.|~|/[^/])"  # what begins as a path is one
    r"(?:.*://"
    r"|[a-z][\w+.-]+:/"
    r"|(?:sqlite|postgres|postgresql)(?:\+\w*)?(?::|//)"
    r"|(?://)?[^/]*:.*@"
    r"|.*\bpassword\s*=)",
    re.IGNORECASE | re.DOTALL,
)
_URL = re.compile(
    r"(?P<scheme>[\w+]+)://"
    r"(?:(?P<user>[^:/?]*)(?::(?P<password>[^@]*))?@)?"
    r"(?P<host>\[[^\[\]/?@]*\]|[^\[\]:/?@]*)(?::(?P<port>[0-9]*))?"
    r"(?:/(?P<database>[^?@]*))?"
    r"(?:\?(?P<query>.*))?",
    re.DOTALL,
)
# Parameters that say which database it is and how it is reached. All others are hidden: a password may come
# by several names, and a name that is mistyped is nobody's.
_SHOWN = re.compile(
    "host|hostaddr|port|dbname|user|service|options|application_name|connect_timeout|"
    "sslmode|sslrootcert|sslcert|gssencmode|target_session_attrs"
)


def looks_like_url(text: str) -> bool:
    """Whether it is a URL or a mistyped one; a file of such a name is `./name`."""
    return _LIKE_URL.match(text) is not None


def sqlite_file(url: str) -> str | None:
    """The file that a SQLite URL names, None for any other text."""
    return url.removeprefix(_SQLITE) if url.startswith(_SQLITE) else None


def why_no_database(url: str) -> str | None:
    """Why what looks like a URL names no database, None when it may."""
    if url.startswith(_SQLITE):
        return None
    match = _URL.fullmatch(url)
    if match is not None:
        known = match["scheme"].partition("+")[0] in _SERVERS
        return None if known else "that kind of URL is not known here"
    if "://" in url:
        return "its user, host or port does not read (in a password @ is %40)"
    return "it is no URL (a file of that name is ./NAME)"


def server(url: str) -> dict[str, Any]:
    """User, password, host, port, database and query of a URL that `why_no_database` lets pass."""
    match = _URL.fullmatch(url)
    assert match is not None
    query: dict[str, list[str]] = {}
    for name, value in parse_qsl(match["query"] or ""):
        query.setdefault(name, []).append(value)
    return {
        "username": unquote(match["user"]) if match["user"] else None,
        "password": unquote(match["password"]) if match["password"] else None,
        "host": match["host"].strip("[]") or None,
        "port": int(match["port"]) if match["port"] else None,
        "database": unquote(match["database"]) if match["database"] else None,
        "query": {name: values if len(values) > 1 else values[0] for name, values in query.items()},
    }


def without_secrets(text: str) -> str:
    """A path as it is, a SQLite URL as its path, another URL without its secrets.

    A URL that does not read is cut short, because anything in it may be the secret.
    """
    if not looks_like_url(text):
        return text
    file = sqlite_file(text)
    if file is not None:
        return file
    match = _URL.fullmatch(text)
    if match is None:
        beginning = re.match(r"[\w+.-]*:?/*", text)
        assert beginning is not None
        return f"{beginning[0]}..."
    user = f"{match['user']}@" if match["user"] else ""
    where = text[match.start("host") :].partition("?")[0]
    parameters = (match["query"] or "").split("&")
    shown = "&".join(each for each in parameters if _SHOWN.fullmatch(unquote_plus(each.partition("=")[0])))
    return f"{match['scheme']}://{user}{where}{'?' if shown else ''}{shown}"
