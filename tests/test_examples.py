"""Every example and every documented command runs, and says what its page says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from documented import ROOT, blocks, run, run_blocks

EXAMPLES = {
    "apply_to_model": "2 linears swapped",
    "load_checkpoint": "8 linears swapped",
    "look_up": "exact: cpu:",
    "own_kernel": "(exact): measured",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    assert EXAMPLES[name] in run(sys.executable, str(ROOT / "examples" / f"{name}.py"), cwd=tmp_path)


def test_every_example_is_run() -> None:
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert scripts - {"tiny"} == set(EXAMPLES)
