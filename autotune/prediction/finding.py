"""The predictor of a device model, by the fits that there are of it."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.prediction.files import fit_files
from autotune.values.device import Device
from autotune.values.errors import DatabaseError

if TYPE_CHECKING:
    from autotune.prediction.predictor import Predictor


def predictor_for(device: Device, database: Path | None = None) -> Predictor:
    """By the user's own fit beside the database, else the shipped one, else the estimates alone.

    A fit that does not read is warned of. What was read is kept until a file changes.
    """
    files = fit_files(device.name, database)
    return _predictor(device, tuple((path, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=16)
def _predictor(device: Device, files: tuple[tuple[Path, int], ...]) -> Predictor:
    from autotune.prediction.fit import read  # these need numpy
    from autotune.prediction.predictor import Predictor

    for path, _ in files:
        try:
            fit = read(path, device)
        except DatabaseError as error:
            warnings.warn(f"{error} (going on without it)", stacklevel=3)
            continue
        if fit is not None:
            return Predictor(fit, device)
    return Predictor(None, device)
