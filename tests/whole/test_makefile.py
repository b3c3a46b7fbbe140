"""What `make` does before the first sweep takes minutes, and is seen."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from places import ROOT


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("target", ["sweep", "test-vllm", "test-sglang"])
def test_make_shows_what_it_installs(target: str) -> None:
    planned = subprocess.run(
        ("make", "--dry-run", "--always-make", target), cwd=ROOT, capture_output=True, text=True, check=True
    )
    installs = [line.split() for line in planned.stdout.splitlines() if "-m pip" in line]
    assert len(installs) >= 2
    for words in installs:
        assert not {"-q", "-qq", "--quiet", ">/dev/null"} & set(words)
