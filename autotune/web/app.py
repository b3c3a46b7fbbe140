"""The pages over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from autotune.values.errors import AutotuneError
from autotune.values.paths import Location
from autotune.web.query import Query
from autotune.web.security import Guard, check_address, hosts_of
from autotune.web.site import VIEWS, Shown, Site

PORT = 8347
STATIC = Path(__file__).parent / "static"
_LOOK_S = 2.0
_STREAMS = 16
"""Live pages at once; each looks at the database every two seconds."""
_SAY_S = 20.0
_STEP_S = 0.2
"""In which it is noticed that a reader or the server goes."""


def serve(db: Location | None, host: str, port: int, token: str | None, said: Callable[[str], None]) -> None:
    """Serve the pages until Ctrl-C, and give `said` their address as soon as they answer. Port 0: a free one.

    Raises:
        AutotuneError: the address needs a token or cannot be had.
        DatabaseError: the database cannot be read.
    """
    check_address(host, token)
    site = Site(db)
    with site.viewer.snapshot():
        pass  # what is wrong with it is better told now than on every page
    listener = _listener(host, port)
    with listener:
        name = f"[{host}]" if ":" in host else host
        said(f"http://{name}:{listener.getsockname()[1]}/")
        server: uvicorn.Server | None = None
        application = Guard(
            make_app(site, lambda: server is None or server.should_exit), hosts_of(host), token
        )
        server = uvicorn.Server(
            uvicorn.Config(
                application,
                log_level=logging.WARNING,
                access_log=False,  # a first request has the token in its URL
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                timeout_graceful_shutdown=3,
                limit_concurrency=100,
            )
        )
        server.run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        AutotuneError: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is no name of a host"
        raise AutotuneError(
            f"--host {host!r} is no address here ({why}); give 127.0.0.1, or an address of this machine"
        ) from None
    family, *_, where = found[0]
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise AutotuneError(
            f"port {port} of {host} cannot be had ({error.strerror}); give another --port, 0 for any free one"
        ) from None
    return listener


def make_app(site: Site, ends: Callable[[], bool]) -> ASGIApp:
    """The pages of the site as an application, open to whoever can ask it; live ones stop when it `ends`."""
    streams = asyncio.Semaphore(_STREAMS)

    def page(name: str) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            return _html(site.page(name, _query(request)))

        return answer

    async def events(request: Request) -> Response:
        first = await run_in_threadpool(_live, site, request)
        if first.status == 404:
            return _html(first)
        if streams.locked():
            return PlainTextResponse("enough live pages are open\n", 503)
        await streams.acquire()
        content = _news(site, request, streams, ends)
        return StreamingResponse(content, media_type="text/event-stream")

    def missing(_: Request, __: Exception) -> Response:
        return _html(site.trouble("No page has that address.", 404))

    routes = [Route("/" if name == "coverage" else f"/{name}", page(name), methods=["GET"]) for name in VIEWS]
    return Starlette(
        routes=[
            *routes,
            Route("/queue/events", events, methods=["GET"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={404: missing},
    )


async def _news(
    site: Site, request: Request, streams: asyncio.Semaphore, ends: Callable[[], bool]
) -> AsyncIterator[str]:
    """The live part of the queue's page, again whenever it is another."""
    try:
        before, looked, said = "", -math.inf, time.monotonic()
        while not ends() and not await request.is_disconnected():
            now = time.monotonic()
            if now >= looked + _LOOK_S:
                looked = now
                shown = await run_in_threadpool(_live, site, request)
                if shown.html != before:
                    before, said = shown.html, now
                    event, what = ("trouble", shown.wrong) if shown.wrong else ("news", shown.html)
                    yield f"event: {event}\ndata: {json.dumps(what)}\n\n"
            if now >= said + _SAY_S:
                said = now
                yield ": nothing new\n\n"
            await asyncio.sleep(_STEP_S)
    finally:
        streams.release()


def _live(site: Site, request: Request) -> Shown:
    """The part of the queue's page that changes."""
    return site.page("queue", _query(request), "queue_live")


def _query(request: Request) -> Query:
    return Query(request.query_params.multi_items())


def _html(shown: Shown) -> Response:
    return HTMLResponse(shown.html, shown.status)
