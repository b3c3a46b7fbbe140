"""What a sweep needs of whoever tunes its problems, wherever that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from autotune.search.tune import Cubins, Tuned
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.extra import TIMES_ONLY, Extra
from autotune.values.layer import Problem
from autotune.values.record import DEFAULT_MODE, Environment, Mode


@dataclass(frozen=True, slots=True)
class At:
    """What an executor is at: a problem, and how many of its configs are done; None where nobody knows."""

    problem: Problem
    done: int | None
    configs: int


class Executor(Protocol):
    """Tunes problems on one device, one at a time, and outlives whatever a candidate does."""

    @property
    def device(self) -> Device:
        """The device that it tunes on."""

    @property
    def environment(self) -> Environment:
        """What else its measurements depend on, as of now."""

    @property
    def at(self) -> At | None:
        """What `tune` is at, for any thread; None while it does not run."""

    def start(self) -> None:
        """Begin to get ready without waiting for it; `tune` does so itself when it must."""

    def tune(
        self,
        problem: Problem,
        candidates: Sequence[Config],
        cubins: Cubins,
        budget_s: float | None = None,
        mode: Mode = DEFAULT_MODE,
        extra: Extra = TIMES_ONLY,
    ) -> Tuned:
        """Measure the candidates, the first of which is the default config, and choose the winner.

        A candidate that crashes or does not end is a trial of status `failed`. What of `extra` cannot be
        measured is left out, and a note says why.

        Raises:
            DeviceError: the device cannot be used at all, or it was cancelled.
        """

    def cancel(self) -> None:
        """End what runs at once, from any thread: `tune` raises, now and until `close`."""

    def close(self) -> None:
        """End what was started, at once."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *_: object) -> None: ...


def by_model(executors: Sequence[Executor]) -> list[list[Executor]]:
    """The executors of each device model, as records belong to one."""
    groups: dict[tuple[str, str], list[Executor]] = {}
    for executor in executors:
        groups.setdefault((executor.device.name, executor.device.arch), []).append(executor)
    return list(groups.values())
