"""An HTTP server of one file, which breaks off, lies or changes its mind as a test asks."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `content` with ranges; each answer ends after `most` bytes, as a connection that breaks."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.most = content, 1 << 30
        self.etag, self.ranges = '"1"', True
        self.lies = False  # of what part it sends
        self.asked: list[str | None] = []
        self.answers: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/mine.bundle"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers["Range"]
        server.asked.append(asked)
        if self.headers["If-None-Match"] == server.etag:
            self._answer(304)
            return
        begin = 0
        if asked and server.ranges and self.headers["If-Range"] == server.etag:
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        part = server.content[begin:]
        self.send_response(206 if begin else 200)
        server.answers.append(206 if begin else 200)
        if begin:
            whole = len(server.content)
            self.send_header("Content-Range", f"bytes {0 if server.lies else begin}-{whole - 1}/{whole}")
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: server.most])

    def _answer(self, code: int) -> None:
        self.server.answers.append(code)
        self.send_response(code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
