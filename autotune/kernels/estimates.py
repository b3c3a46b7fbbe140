"""What the families estimate times with: how fast a device is, and how the parts of a time come together.

An estimate is a small model of a kernel. Blocks come in waves over the multiprocessors; a wave takes as long
as its busiest multiprocessor, whose warps wait for memory, for each other and for the tensor cores; and the
weights have to be read meanwhile. Constants that a data sheet does not give were fitted to sweeps on an H200
and stand beside the model that uses them, in microseconds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotune.config import Config
    from autotune.device import Device
    from autotune.kernels.family import Family
    from autotune.layer import Problem

overlapped = math.hypot
"""The time of parts that hide each other, but not wholly: a little more than the longest of them takes."""

_CLUSTERS = {1: 132, 2: 66, 3: 39, 4: 30, 5: 22, 6: 17, 7: 15, 8: 15}
"""How many clusters of so many blocks run at once on the 132 multiprocessors of an H200, a block on each, as
its driver's occupancy calculator says: a cluster stays within a part of the chip."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What a device does in a microsecond: bytes that it reads from memory, and the floating-point operations
    that a multiprocessor does by `mma.sync` and in a large product of cuBLAS, summing in fp32.
    """

    read_bytes: float
    mma_operations: float
    dense_operations: float


_READ = 0.9
"""Of the bytes that a data sheet names; an H100 reads 3.0 of 3.35 TB/s, an H200 4.5 of 4.8."""

# Of a multiprocessor, from each arch on: bytes, and operations by `mma.sync` and in all, in a microsecond,
# as data sheets name them for an A100 80GB, A40, L40S, H100, B200 and RTX PRO 6000. On Hopper an `mma.sync`
# m16n8k16 takes 6.05 cycles of a scheduler (measured); that a B200 is as fast is a guess.
_PER_CORE = {
    80: (18_900, 2.89e6, 2.89e6),
    86: (8_300, 1.78e6, 1.78e6),
    89: (6_100, 2.55e6, 2.55e6),
    90: (25_400, 4.75e6, 7.5e6),
    100: (54_000, 4.75e6, 15.2e6),
    120: (9_500, 2.68e6, 2.68e6),
}
_MEMORY = {
    "NVIDIA H200": 4_800e3,
    "NVIDIA H200 NVL": 4_800e3,
    "NVIDIA A100-SXM4-40GB": 1_555e3,
    "NVIDIA A100-PCIE-40GB": 1_555e3,
    "NVIDIA L4": 300e3,
    "NVIDIA GeForce RTX 4090": 1_008e3,
}
"""Bytes in a microsecond of whole devices, by their data sheets, that the table above would miss by much."""

_DENSE = 0.82
"""Of all operations, those that cuBLAS does, as fitted to an H200 together with family `dequant_matmul`."""


@functools.cache
def speed(device: Device) -> Speed:
    """The device's speed, by arch and number of multiprocessors; of some names the memory is known better."""
    arch = int(device.arch.removeprefix("sm_"))
    core_bytes, mma, dense = _PER_CORE[max((known for known in _PER_CORE if known <= arch), default=80)]
    if "GeForce" in device.name:  # their tensor cores sum in fp32 at half the speed
        mma, dense = mma / 2, dense / 2
    return Speed(_READ * _MEMORY.get(device.name, core_bytes * device.cores), mma, _DENSE * dense)


def usable_cores(cores: int, of: int) -> int:
    """Multiprocessors that clusters of `of` blocks with one each use."""
    return of * (_CLUSTERS[of] * cores // _CLUSTERS[1])


def waves_us(clusters: int, of: int, resident: int, cores: int, round_us: Callable[[int], float]) -> float:
    """How long clusters of `of` blocks take, of which a multiprocessor holds `resident` blocks at once.

    `round_us` says how long so many blocks take a multiprocessor when they start together.
    """
    usable = usable_cores(cores, of)
    full, rest = divmod(clusters, max(1, usable * resident // of))
    last = round_us(-(-rest * of // usable)) if rest else 0.0
    return full * round_us(resident) + last


def quickest(family: Family, configs: Iterable[Config], problem: Problem, device: Device) -> Config | None:
    """The valid config of the lowest estimate, of equal ones the first; None when none is valid."""
    valid = (config for config in configs if family.reject(config, problem, device) is None)
    return min(valid, key=lambda config: family.estimate(config, problem, device), default=None)
