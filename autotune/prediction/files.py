"""Where the fits of device models are found."""

from __future__ import annotations

import os.path
import re
from pathlib import Path

from autotune.values.paths import shipped


def file_name(device: str) -> str:
    """`nvidia-h200.fit.json`, of a device model's name."""
    return re.sub("[^a-z0-9]+", "-", device.lower()).strip("-") + ".fit.json"


def own_fit(database: Path, device: str) -> Path:
    """The user's own fit of the device model, which stands beside the database."""
    return database.with_name(f"{database.name}.{file_name(device)}")


def shipped_fit(device: str) -> Path:
    """The fit of the device model that autotune ships, if it does."""
    return shipped("db") / file_name(device)


def fit_files(device: str, database: Path | None) -> list[Path]:
    """Those of the device model that are there: the user's own beside the database, then the shipped one.

    A folder that may not be entered has none.
    """
    own = [] if database is None else [own_fit(database, device)]
    return [path for path in (*own, shipped_fit(device)) if os.path.isfile(path)]
