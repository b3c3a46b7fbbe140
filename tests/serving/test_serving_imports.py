"""Acting after somebody else's import: when, how often, and that the import itself is as ever."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.serving.imports import after_import


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with modules that tell the order in which they run."""
    name = "engine_of_a_test"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("ran = []\n")
    (folder / "door.py").write_text(f"import {name} as whole\nwhole.ran.append('door')\nkernels = [1]\n")
    (folder / "broken.py").write_text("raise RuntimeError('as it is')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield name
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[module]


def test_it_acts_once_when_the_module_has_run(package: str) -> None:
    acted: list[object] = []

    def act() -> None:
        from engine_of_a_test import door  # the importing module is whole, also for who asks its package

        acted.append(list(door.kernels))

    after_import(f"{package}.door", act)
    whole = importlib.import_module(package)
    assert acted == []
    for _ in range(2):
        importlib.import_module(f"{package}.door")
    assert acted == [[1]]
    assert whole.ran == ["door"]


def test_it_acts_at_once_when_the_module_is_there(package: str) -> None:
    importlib.import_module(f"{package}.door")
    acted: list[bool] = []
    after_import(f"{package}.door", lambda: acted.append(True))
    assert acted == [True]


def test_looking_for_the_module_is_no_import(package: str) -> None:
    acted: list[bool] = []
    after_import(f"{package}.door", lambda: acted.append(True))
    for _ in range(2):
        assert importlib.util.find_spec(f"{package}.door") is not None
    assert acted == []
    importlib.import_module(f"{package}.door")
    assert acted == [True]


def test_it_acts_when_the_module_runs_at_last(package: str, tmp_path: Path) -> None:
    acted: list[bool] = []
    after_import(f"{package}.broken", lambda: acted.append(True))
    with pytest.raises(RuntimeError, match="as it is"):
        importlib.import_module(f"{package}.broken")
    (tmp_path / package / "broken.py").write_text("mended = True\n")
    importlib.invalidate_caches()
    importlib.import_module(f"{package}.broken")
    assert acted == [True]


def test_an_import_that_fails_fails_as_ever(package: str) -> None:
    acted: list[bool] = []
    after_import(f"{package}.broken", lambda: acted.append(True))
    after_import(f"{package}.missing", lambda: acted.append(True))
    with pytest.raises(RuntimeError, match="as it is"):
        importlib.import_module(f"{package}.broken")
    with pytest.raises(ModuleNotFoundError, match="missing"):
        importlib.import_module(f"{package}.missing")
    assert acted == []
