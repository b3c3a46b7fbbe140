"""Health and metrics over HTTP, for this machine only."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from autotune.values.errors import AutotuneError

PORT = 9464
HOST = "127.0.0.1"
MOST = 16
LIMIT_S = 10.0
"""Prometheus waits as long for an answer, unless it is told otherwise."""
_LOOK_S = 0.5

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""
Health = Callable[[], tuple[list[str], dict[str, Any]]]
"""What is wrong, one line each, and more to know."""


class _Server(ThreadingMixIn, WSGIServer):
    """Has at most MOST connections at once, and none for longer than LIMIT_S; others wait to be accepted.

    So do all of them while no file descriptor is left.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(MOST)
        self._ends: dict[socket.socket, float] = {}
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; an OSError has the caller look again."""
        if not self._places.acquire(timeout=_LOOK_S):
            raise TimeoutError
        try:
            connection, client = super().get_request()
        except OSError:
            self._places.release()
            time.sleep(_LOOK_S)  # it is still there to be accepted, and would be tried without a pause
            raise
        self._ends[connection] = time.monotonic() + LIMIT_S
        return connection, client

    def service_actions(self) -> None:
        """Cut off who has had his time; called again and again."""
        now = time.monotonic()
        for connection, end in list(self._ends.items()):
            if now >= end:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """End a connection, once, whatever became of it."""
        del self._ends[request]
        super().shutdown_request(request)
        self._places.release()

    def handle_error(self, *_: object) -> None:
        """Who goes away before he is answered is of no interest."""


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Who asks is of no interest."""


@contextlib.contextmanager
def serve_http(port: int, health: Health, metrics: App) -> Iterator[str]:
    """Answer /healthz and /metrics on loopback while the block runs; the address. Port 0: a free one.

    Raises:
        AutotuneError: the port is in use.
    """

    def application(environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, respond)
        if path != "/healthz":
            return _answer(respond, "404 Not Found", {"error": f"no {path} here; see /healthz and /metrics"})
        wrong, more = health()
        status = "503 Service Unavailable" if wrong else "200 OK"
        return _answer(respond, status, {"ok": not wrong, "wrong": wrong, **more})

    try:
        server = make_server(HOST, port, application, _Server, _Quiet)
    except OSError as error:
        raise AutotuneError(
            f"port {port} of {HOST} cannot be had ({error.strerror}); give another --port"
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _answer(respond: Callable[..., Any], status: str, content: dict[str, Any]) -> list[bytes]:
    respond(status, [("Content-Type", "application/json")])
    return [json.dumps(content).encode() + b"\n"]
