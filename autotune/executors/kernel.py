"""Tunes a kernel of somebody else's in worker processes on this machine, each of which imports it."""

from __future__ import annotations

import functools
from multiprocessing.connection import Connection

from autotune.executors.local import LocalExecutor, local_executors
from autotune.executors.worker import work
from autotune.families.external import ExternalFamily, load_kernel
from autotune.search.environment import current_environment
from autotune.values.device import Device
from autotune.values.record import Environment


class KernelExecutor(LocalExecutor):
    """A LocalExecutor that knows one kernel and no other: what `load_kernel` makes of the reference.

    Raises:
        ConfigError: there is no such kernel.
        DeviceError: it runs on another kind of device.
    """

    def __init__(
        self,
        device: Device,
        reference: str,
        limit_s: float | None = None,
        allow_busy: bool = False,
        database: str = "",
    ) -> None:
        self.kernel: ExternalFamily = load_kernel(reference)
        self.kernel.expect_kind(device)
        super().__init__(device, limit_s, functools.partial(_work, reference), allow_busy, database)

    @property
    def environment(self) -> Environment:
        """As of any executor, with the kernel as its only family."""
        return current_environment(self.device, (self.kernel.name,))


def kernel_executors(
    reference: str, names: str = "auto", allow_busy: bool = False, database: str = ""
) -> list[KernelExecutor]:
    """One executor for each device, by the names of `local_executors`; `auto` is the kernel's kind.

    Raises:
        ConfigError, DeviceError: as `KernelExecutor` and `local_executors`.
    """
    default = load_kernel(reference).find_device()  # a kernel that can run nowhere here says so first
    names = default.kind if names == "auto" else names
    return [
        KernelExecutor(each.device, reference, allow_busy=allow_busy, database=database)
        for each in local_executors(names, allow_busy)
    ]


def _work(reference: str, pipe: Connection, device: Device) -> None:
    """A worker's entry."""
    work(pipe, device, load_kernel(reference).layout)
