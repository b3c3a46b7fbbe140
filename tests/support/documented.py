"""What documentation shows, as its readers would run it: scripts, and the code blocks of a page in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from command_line import PROGRAM
from places import ROOT

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\n")


def run(*command: str, cwd: Path) -> str:
    """What the command says on stdout; `autotune` in its PATH takes no measurement for a disturbed one."""
    programs = cwd / "bin"
    programs.mkdir(exist_ok=True)
    shim = programs / "autotune"
    shim.write_text(f'#!/bin/sh\nexec "{PROGRAM[0]}" "{PROGRAM[1]}" "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    path = os.pathsep.join((str(programs), os.environ["PATH"]))
    own = {"PATH": path, "AUTOTUNE_DB": str(cwd / "autotune.db"), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **own}
    ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of each code block."""
    return _BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def run_blocks(page: str, cwd: Path) -> None:
    """Write the page's files, run its commands and its other Python, all in order in `cwd`."""
    for language, code in blocks(page):
        name = _FILE.match(code)
        if language == "python" and name:
            (cwd / name[1]).write_text(code, encoding="utf-8")
        elif language == "python":
            run(sys.executable, "-c", code, cwd=cwd)
        elif language == "sh":
            run("bash", "-euc", code, cwd=cwd)
