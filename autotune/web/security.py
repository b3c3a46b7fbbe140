"""Who may ask: this machine by its loopback names, and who has the token where another address is served."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autotune.values.errors import AutotuneError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
SHORTEST_TOKEN = 16
# What stands for itself in a URL, where others would have to be encoded, and in a header.
_NOT_IN_TOKENS = re.compile(r"[^A-Za-z0-9._~-]")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def check_address(host: str, token: str | None) -> None:
    """Raise AutotuneError unless the address may be served: beyond loopback it takes a token, a long one."""
    if token is not None and (odd := _NOT_IN_TOKENS.search(token)):
        raise AutotuneError(
            f"a token has ASCII letters, digits and - . _ ~ only, not {odd[0]!r}; "
            "give another, as from: openssl rand -hex 16"
        )
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise AutotuneError(
            f"a token of {len(token)} characters can be guessed; give one of {SHORTEST_TOKEN} or more, "
            "as from: openssl rand -hex 16"
        )
    if token is None and not is_loopback(host):
        raise AutotuneError(
            f"--host {host} shows the database to others, so it needs --token; "
            "or serve on 127.0.0.1 behind a proxy that asks who they are"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def hosts_of(host: str) -> frozenset[str] | None:
    """What the Host header may name; None where it may be any address, as this machine has several."""
    if host in ("0.0.0.0", "::"):
        return None
    return frozenset((*LOOPBACK, host.lower()))


class Guard:
    """Answers itself what may not reach the pages, and gives every answer the headers that keep them safe.

    A browser shows its token once, in the URL, and has a cookie from then on; a program sends
    `Authorization: Bearer`. The cookie is no token: it ends with the server. Browsers have
    one set of cookies for all ports of a host, so its name has the port.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, token: str | None) -> None:
        self._app, self._hosts, self._token = app, hosts, token
        self._cookie = hmac.digest(secrets.token_bytes(32), (token or "").encode(), hashlib.sha256).hex()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._refused(scope)
        await (answer or self._app)(scope, receive, guarded)

    def _refused(self, scope: Scope) -> Response | None:
        """What is answered in place of a page."""
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("these pages can only be read\n", 405, {"Allow": "GET, HEAD"})
        if not self._is_known(headers.get("host", "")):
            return PlainTextResponse("this server is not called by that name\n", 421)
        return None if self._token is None else self._without_token(scope, headers)

    def _is_known(self, named: str) -> bool:
        name = _split(named)[0].strip("[]").lower()
        if self._hosts is not None:
            return name in self._hosts
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in (*LOOPBACK, socket.gethostname().lower(), socket.getfqdn().lower())
        return True

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        cookie = f"autotune-{_split(headers.get('host', ''))[1] or 80}"
        if _equal(self._cookie, _cookies(headers).get(cookie, "")):
            return None
        if _equal(f"Bearer {self._token}", headers.get("authorization", "")):
            return None
        pairs = parse_qsl(scope["query_string"].decode("latin-1"))
        if any(name == "token" and _equal(self._token or "", value) for name, value in pairs):
            query = urlencode([pair for pair in pairs if pair[0] != "token"])
            # Not where a URL in the path could lead: `//elsewhere` is another server.
            path = "/" + scope["path"].lstrip("/\\")
            answer = RedirectResponse(f"{path}?{query}" if query else path, 303)
            answer.set_cookie(cookie, self._cookie, httponly=True, samesite="strict")
            return answer
        return PlainTextResponse("open the address with ?token=… once; the server's owner has it\n", 401)


def _split(named: str) -> tuple[str, str]:
    """Name and port of what the Host header says; no port is empty."""
    name, _, port = named.rpartition(":")
    return (name, port) if re.fullmatch("[0-9]{1,5}", port) else (named, "")


def _cookies(headers: Headers) -> dict[str, str]:
    try:
        return {name: each.value for name, each in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "surrogateescape"))
