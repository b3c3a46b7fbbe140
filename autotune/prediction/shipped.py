"""The predictor of a device by what autotune ships."""

from __future__ import annotations

import functools
import warnings

from autotune.prediction.files import shipped_fit
from autotune.prediction.fit import read
from autotune.prediction.predictor import Predictor
from autotune.values.device import Device
from autotune.values.errors import DatabaseError


@functools.cache
def shipped_predictor(device: Device) -> Predictor:
    """By the shipped fit of the device model; by estimates alone where there is none that reads."""
    try:
        fit = read(shipped_fit(device.name), device)
    except DatabaseError as error:
        warnings.warn(f"{error} (going on without it)", stacklevel=2)
        fit = None
    return Predictor(fit, device)
