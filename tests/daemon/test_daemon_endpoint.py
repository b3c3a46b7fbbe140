"""Health and metrics under clients that are slow, silent or many."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from autotune.daemon import endpoint
from autotune.daemon.endpoint import MOST, serve_http

LIMIT_S = 60.0
ASK = b"GET /healthz HTTP/1.0\r\n\r\n"


class Health:
    """Answers when it is `open`; `together` is how many ask at once, `most` the highest of these."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.full = threading.Semaphore(0)
        self.most = self.together = 0
        self._counting = threading.Lock()

    def __call__(self) -> tuple[list[str], dict[str, object]]:
        with self._counting:
            self.together += 1
            self.most = max(self.most, self.together)
        self.full.release()
        self.open.wait(LIMIT_S)
        with self._counting:
            self.together -= 1
        return [], {}


@pytest.fixture
def health() -> Iterator[Health]:
    made = Health()
    yield made
    made.open.set()


def client(address: str, *sent: bytes) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=LIMIT_S)
    for each in sent:
        connected.sendall(each)
    return connected


def answer(connected: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    with connected, connected.makefile("rb") as stream:
        return stream.read()


def served(health: Health):
    return serve_http(0, health, lambda _, respond: [respond("200 OK", []) or b""][:1])


def test_who_says_nothing_or_never_ends_is_cut_off_and_others_are_answered(health, monkeypatch):
    monkeypatch.setattr(endpoint, "LIMIT_S", 0.1)
    with served(health) as address:
        silent = [client(address, *sent) for sent in ((), (b"GET /hea",), (ASK[:-2],)) for _ in range(MOST)]
        late = client(address, ASK)
        assert [answer(each).partition(b" ")[0] for each in silent[:MOST]] == [b""] * MOST
        for each in silent[MOST:]:
            answer(each)
        assert answer(late).startswith(b"HTTP/1.0 200")


def test_only_so_many_are_answered_at_once_and_the_others_later(health):
    health.open.clear()
    with served(health) as address:
        clients = [client(address, ASK) for _ in range(2 * MOST)]
        for _ in range(MOST):
            assert health.full.acquire(timeout=LIMIT_S)
        health.open.set()
        assert all(answer(each).startswith(b"HTTP/1.0 200") for each in clients)
    assert health.most == MOST
