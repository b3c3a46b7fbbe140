"""What a user waits for: torch and SQLAlchemy take seconds to import, so who does not need them waits not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"alembic", "click", "numpy", "ray", "rich", "sqlalchemy", "torch"}
MODULES = """
import json, sys
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""
RUN_CLI = "from autotune.cli import main; code = main({arguments!r}); assert code == 0, code"


def heavy_modules(code: str, folder: Path) -> set[str]:
    """Which of the heavy packages a fresh interpreter has imported after `code`."""
    ended = subprocess.run(
        [sys.executable, "-c", code + MODULES], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return HEAVY & set(json.loads(ended.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import autotune; autotune.Layer, autotune.Problem, autotune.Config", set()),
        ("import autotune; autotune.__version__", set()),
        ("import autotune; autotune.lookup(autotune.Layer(n=256, k=256), m=1, device='cpu')", set()),
        ("import autotune; autotune.sweep, autotune.SweepReport", {"sqlalchemy"}),
        ("import autotune; autotune.Int4Linear, autotune.apply", {"torch", "numpy"}),
        (RUN_CLI.format(arguments=["--help"]), {"click"}),
        (RUN_CLI.format(arguments=["sweep", "--help"]), {"click"}),
        (RUN_CLI.format(arguments=["lookup", "--shapes", "llama7b", "--device", "cpu"]), {"click"}),
        (RUN_CLI.format(arguments=["lookup", "--serving", "llama7b", "--device", "cpu"]), {"click"}),
    ],
)
def test_imports_stay_light(code: str, allowed: set[str], tmp_path: Path) -> None:
    assert heavy_modules(code, tmp_path) <= allowed


def test_public_names() -> None:
    import autotune

    assert set(dir(autotune)) == {*autotune.__all__, "__version__"}
    for name in autotune.__all__:
        assert getattr(autotune, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        autotune.nonsense  # noqa: B018
