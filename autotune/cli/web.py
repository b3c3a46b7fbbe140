"""What the verbs that make pages need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from autotune.values.errors import AutotuneError


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """Say what to install where an import of the block finds no module.

    Raises:
        AutotuneError: a module is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise AutotuneError(
            f"pages need the Python module {error.name}; run: pip install 'autotune-int4[web]'"
        ) from error
