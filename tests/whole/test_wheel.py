"""The wheel, in an environment of its own: everything that a sweep needs is inside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock
from places import ROOT

ON_CPU = ("n=256,k=256", "--m", "1", "--device", "cpu", "--db", "here.db")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "AUTOTUNE_DB")}
    return subprocess.run(command, cwd=cwd, env=outside, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the checkout's own build folder, where the extension that is here was compiled."""
    folder = tmp_path_factory.mktemp("wheel")
    # Both of two test processes may have tests of this file.
    with FileLock(tmp_path_factory.getbasetemp().parent / "wheel.lock"):
        built = run(
            sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "--no-index",
            f"--wheel-dir={folder}", cwd=folder,
        )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("autotune_int4-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel, and sees its dependencies but no checkout."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    (packages,) = (home / "lib").glob("python*/site-packages")
    # A folder in a .pth adds its packages, not its own .pth files: an editable install stays out of sight.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    done = run(
        sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps", "--no-index",
        "--force-reinstall", wheel, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return python.parent


def test_wheel_carries_what_is_read_at_run_time(wheel: Path) -> None:
    inside = {name.removeprefix("autotune/_shipped/") for name in zipfile.ZipFile(wheel).namelist()}
    for folder, pattern in (
        ("csrc/cuda", "*.cu*"),
        ("migrations", "*.py"),
        ("db", "*"),
        ("autotune/web/static", "*"),
        ("autotune/web/templates", "*"),
    ):
        files = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob(pattern)
            if path.is_file() and not path.name.startswith(".")
        }
        assert files, f"nothing in {folder}"
        assert files <= inside
    assert {
        f"benchmarks/results/h200-{name}.jsonl" for name in ("peers", "tokens", "llama3-8b-serving")
    } <= inside
    assert not [name for name in inside if name.startswith(("csrc/cpu", "tests", ".whl"))]


def test_an_sdist_of_a_checkout_that_was_installed_carries_sources_only(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "*.so"))
    built = checkout / "build" / "tag" / "CMakeFiles" / "_C.dir" / "csrc" / "cpu" / "pool.cpp.o"
    built.parent.mkdir(parents=True)
    built.write_bytes(b"\x7fELF")
    code = "from scikit_build_core.build import build_sdist; build_sdist('..')"
    done = run(sys.executable, "-c", code, cwd=checkout)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("autotune_int4-*.tar.gz")
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    assert {
        "csrc/cpu/pool.cpp",
        "csrc/cuda/common/layout.cuh",
        "migrations/env.py",
        "db/nvidia-h200.fit.json",
        "db/nvidia-h200.jsonl",
    } <= inside
    assert not [name for name in inside if name.startswith("build/") or name.endswith((".o", ".whl"))]


def test_shipped_files_are_found_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "from autotune.values.paths import shipped; print(*map(shipped, ('csrc/cuda', 'migrations', 'db')))"
    )
    shown = run(installed / "python", "-c", code, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for folder in shown.stdout.split():
        assert Path(folder).is_relative_to(installed.parent)
        assert Path(folder).is_dir()


TYPED = """
import autotune

layer = autotune.Layer(n=256, k=256)
reveal_type(autotune.lookup(layer, m=1).config)
reveal_type(autotune.sweep([layer, "llama7b"], m=(1, 16), budget="60s").problems[0].gain)
reveal_type(autotune.warmup("cpu").kernels)
autotune.lookup(7)
autotune.swep
"""


def test_a_type_checker_knows_the_public_names_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(TYPED)
    # Only what torch's own names are would take a minute to find out.
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n[mypy-torch.*]\nfollow_imports = skip\n")
    python = f"--python-executable={installed / 'python'}"
    checked = run(sys.executable, "-m", "mypy", python, "--hide-error-context", "user.py", cwd=tmp_path)
    said = [line.removeprefix("user.py:") for line in checked.stdout.splitlines() if "user.py:" in line]
    assert said[:3] == [
        '5: note: Revealed type is "autotune.values.config.Config"',
        '6: note: Revealed type is "float | None"',
        '7: note: Revealed type is "int"',
    ], checked.stdout
    assert [line.partition(":")[0] for line in said[3:]] == ["8", "9"], checked.stdout
    assert '"int"; expected "Layer"' in said[3]
    assert 'Module has no attribute "swep"' in said[4]


def test_sweep_and_lookup_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    swept = run(
        installed / "autotune", "sweep", "--shapes", *ON_CPU, "--budget", "5s", "--json", cwd=tmp_path
    )
    assert swept.returncode == 0, swept.stderr
    winner = json.loads(swept.stdout)
    found = run(
        installed / "autotune", "lookup", "--shapes", *ON_CPU, "--require", "exact", "--json", cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    (answer,) = json.loads(found.stdout)
    assert (answer["source"], answer["config"]) == ("exact", winner["config"])
