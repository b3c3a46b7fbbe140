"""A real PostgreSQL server of the tests' own, in a temporary folder, reached through its socket only."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

# The server refuses to run as root.
AS: dict[str, Any] = {}
if os.geteuid() == 0:
    AS = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
MANY = "-c max_connections=200"
FAST = f"{MANY} -c fsync=off -c full_page_writes=off"


def binaries() -> Path | None:
    """Where the server's programs are, the newest version's; None when it is not installed."""
    on_path = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    found = [folder for folder in reversed(folders) if (folder / "initdb").exists()]
    return Path(on_path).resolve().parent if on_path else next(iter(found), None)


class Server:
    """A running server; `url` names a database of it."""

    def __init__(self, folder: Path, programs: Path, options: str) -> None:
        self._folder, self._programs, self._options = folder, programs, options
        self._numbers = itertools.count()
        data = ["--pgdata", str(folder / "data"), "--username", "postgres", "--auth", "trust"]
        self._run("initdb", *data, "--no-sync", "--no-locale", "--encoding", "UTF8")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}' {self._options}"
        self._control("start", "--wait", "--options", options, "--log", str(self._folder / "log"))

    def stop(self) -> None:
        """End it as a power failure does: no connection is told, and the next start recovers."""
        self._control("stop", "--wait", "--mode", "immediate")

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql+psycopg://{user}@/{database}?host={self._folder}"

    def create(self, template: str = "template1") -> str:
        """A new database; its name."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> None:
        engine = sa.create_engine(self.url(database), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "--silent", "--pgdata", str(self._folder / "data"), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        # What a server that stays inherits must not be a pipe that somebody reads to its end.
        with (self._folder / "said").open("w+") as said:
            command = [str(self._programs / program), *arguments]
            ended = subprocess.run(command, cwd=self._folder, stdout=said, stderr=said, **AS)
            said.seek(0)
            assert ended.returncode == 0, f"{program}: {said.read()}"


@contextmanager
def server(options: str = FAST) -> Iterator[Server]:
    """A server for as long as the block runs; skips the test where none is installed."""
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server here; run: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="autotune-") as name:
        folder = Path(name)
        if AS:
            shutil.chown(folder, AS["user"])
        running = Server(folder, programs, options)
        try:
            yield running
        finally:
            running.stop()
