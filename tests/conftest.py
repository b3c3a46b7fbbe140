"""Tests marked gpu need an NVIDIA GPU; no test touches the user's own database or locks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autotune import _C
from autotune.device import cuda_devices


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if cuda_devices():
        return
    skip = pytest.mark.skip(reason=f"no NVIDIA GPU: {_C.cuda_unavailable_reason()}")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def own_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOTUNE_DB", str(tmp_path_factory.mktemp("data") / "autotune.db"))
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("locks")))
        yield
