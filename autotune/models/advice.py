"""The commands that messages advise."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from autotune.values.layer import Layer
from autotune.values.paths import Location, shown


def sweep_command(
    layers: Iterable[Layer], on_cpu: bool, db: Location | None, tokens: Sequence[int] | None = None
) -> str:
    """The command that tunes the layers, for these numbers of tokens or all, into the database."""
    command = ["autotune", "sweep", "--shapes", ";".join(map(str, dict.fromkeys(layers)))]
    if tokens:
        command += ["--m", ",".join(map(str, tokens))]
    if on_cpu:
        command += ["--device", "cpu"]
    if db is not None:
        command += ["--db", shown(db)]
    return shlex.join(command)
