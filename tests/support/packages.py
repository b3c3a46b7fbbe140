"""Packages that tests compare with, where they import."""

import importlib
from types import ModuleType

import pytest


def package(module: str) -> ModuleType:
    """The module; the test is skipped when its package does not import here."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # what a package raises without a GPU is its own affair
        pytest.skip(f"{module} does not import: {type(error).__name__}: {str(error).splitlines()[0]}")
