"""The command line, killed while it writes to a database.

Run as a program it ends itself, as kill -9 does, in front of the write of the given number.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa
from lookup_world import SmallFamily
from places import ROOT, SUPPORT
from store_samples import SOURCES

from autotune.cli import main
from autotune.families import registry


def killed_at(write: int, *arguments: str) -> int:
    """The exit code of `autotune arguments` with the small families, killed in front of that write."""
    paths = os.pathsep.join((str(ROOT), str(SUPPORT)))
    command = [sys.executable, str(Path(__file__)), str(write), *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode


if __name__ == "__main__":
    left = int(sys.argv[1])
    registry.families = lambda: {name: SmallFamily(name) for name in SOURCES}

    @sa.event.listens_for(sa.Engine, "before_cursor_execute")
    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        """Count writes, and end at the last of them."""
        global left
        left -= statement.startswith(("INSERT", "UPDATE"))
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.exit(main(sys.argv[2:]))
