"""A host with a database, keys and downloads of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lookup_world import make_small_world
from store_samples import ENVIRONMENT, H200

from autotune.bundles.format import BundleContents
from autotune.bundles.keys import new_key, signing_key, trust
from autotune.bundles.trust import create
from autotune.store.entries import Entry


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where its database is, which is not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "cache"))
    return make_small_world(tmp_path, monkeypatch)


@pytest.fixture
def signed(tmp_path: Path, database: Path) -> Callable[..., Path]:  # noqa: ARG001
    """Makes bundles that a trusted key signed."""
    trust(new_key("release"))

    def make(name: str, *records, cubin=None, key: str | None = "release") -> Path:
        entries = [Entry(each, H200, ENVIRONMENT, cubin) for each in records]
        return create(name, BundleContents(entries), tmp_path / "bundles", key and signing_key(key))[1]

    return make
