"""Every example and every documented command runs, and says what its page says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from checkpoints import stored, tiny
from documented import blocks, run, run_blocks
from places import ROOT
from real_families import CPU_FAMILY

EXAMPLES = {
    "apply_to_model": "2 linears swapped",
    "load_checkpoint": "8 linears swapped",
    "look_up": f"exact: {CPU_FAMILY.name}:",
    "own_kernel": "(exact): measured",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    assert EXAMPLES[name] in run(sys.executable, str(ROOT / "examples" / f"{name}.py"), cwd=tmp_path)


def test_every_example_is_run() -> None:
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert scripts - {"tiny"} == set(EXAMPLES)


def test_the_tutorial_of_a_kernel_runs(tmp_path: Path) -> None:
    run_blocks("docs/add-a-kernel.md", tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == {"kernels.py", "packed.py"}


def test_the_python_of_readme_runs(tmp_path: Path) -> None:
    """As one session, beside a checkpoint of the name that it loads."""
    stored(tmp_path / "path" / "to" / "awq-checkpoint", tiny())
    code = [text for language, text in blocks("README.md") if language == "python"]
    assert len(code) == 2
    assert "8 linears swapped" in run(sys.executable, "-c", "\n".join(code), cwd=tmp_path)
