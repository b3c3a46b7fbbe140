"""Tests marked gpu need an NVIDIA GPU; no test touches the user's own database or locks."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crashing import PID_FIFO
from cuda_units import unit_in
from postgres import Server, server
from undisturbed import believe_all

from autotune import _C
from autotune.jit.unit import Unit
from autotune.store.schema import upgrade
from autotune.store.store import Store
from autotune.values.device import cuda_devices
from autotune.values.paths import cubin_cache

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of torch that share cores with another test wait for each other in a loop.
    os.environ["OMP_NUM_THREADS"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores interrupts, and so would every process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if cuda_devices():
        return
    skip = pytest.mark.skip(reason=f"no NVIDIA GPU: {_C.cuda_unavailable_reason()}")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def own_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOTUNE_DB", str(tmp_path_factory.mktemp("data") / "autotune.db"))
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests compute meanwhile; a module about that has a fixture of this name that does nothing."""
    believe_all(monkeypatch.setattr)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of cubins, for tests that compile."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "cache"))
    return cubin_cache()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Unit]:
    """Makes units for the compiler, from a text and defines."""
    return functools.partial(unit_in, tmp_path)


@pytest.fixture
def fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Reading it waits for a config of crashing.WAIT that runs, and gives its worker's process id."""
    path = tmp_path / "pid"
    os.mkfifo(path)
    monkeypatch.setenv(PID_FIFO, str(path))
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture(scope="session")
def template(postgres: Server) -> str:
    """A PostgreSQL database of the newest schema, to copy."""
    name = postgres.create()
    upgrade(postgres.url(name))
    return name


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Of the test's own, empty."""
    with Store.open(str(tmp_path / "mine.db")) as opened:
        yield opened


@pytest.fixture
def server_url(postgres: Server, template: str) -> Iterator[str]:
    """A migrated PostgreSQL database of the test's own."""
    name = postgres.create(template)
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of the test's own, of each kind: a file that is not there yet, a migrated PostgreSQL one."""
    if request.param == "sqlite":
        return str(tmp_path / "new folder" / "100% mine?.db")
    found: str = request.getfixturevalue("server_url")
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without a schema, of each kind."""
    if request.param == "sqlite":
        yield str(tmp_path / "empty.db")
        return
    postgres = request.getfixturevalue("postgres")
    name = postgres.create()
    yield postgres.url(name)
    postgres.drop(name)
