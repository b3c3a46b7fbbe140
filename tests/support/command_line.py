"""Run the command line as users do: as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = (sys.executable, str(Path(__file__).with_name("undisturbed.py")))


def autotune(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`autotune arguments` from the folder `cwd`."""
    return subprocess.run((*PROGRAM, *arguments), cwd=cwd, capture_output=True, text=True, check=False)
