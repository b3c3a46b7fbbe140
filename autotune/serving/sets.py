"""One set of pulled records for all processes of an engine, tensor-parallel ranks among them."""

from __future__ import annotations

import os

from autotune.values.errors import DatabaseError
from autotune.values.paths import SET_VARIABLE, database_url, sqlite_path


def hand_on_set() -> None:
    """Read once which set is in force, and leave it to every process that this one starts.

    So no pull between the starts of two ranks has them run different kernels. A set that is named already, by
    the parent or a user, stays.
    """
    path = sqlite_path(database_url())
    if SET_VARIABLE in os.environ or path is None:
        return
    from autotune.store.reading import pulled_set  # not in processes that are told

    try:
        name = pulled_set(path)
    except DatabaseError:
        return  # look-up will say so
    if name is not None:
        os.environ[SET_VARIABLE] = name
