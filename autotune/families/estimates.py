"""What the families estimate times with: how fast a device is, and how the parts of a time come together.

An estimate is a small model of a kernel. Blocks come in waves over the multiprocessors; a wave takes as long
as its busiest multiprocessor, whose warps wait for memory, for each other and for the tensor cores; and the
weights have to be read meanwhile. Constants that a data sheet does not give were fitted to sweeps on an H200
and stand beside the model that uses them, in microseconds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotune.values.device import Device

overlapped = math.hypot
"""The time of parts that hide each other, but not wholly: a little more than the longest of them takes."""

_CORES = 132
_PARTS = (18, 18, 16, 16, 16, 16, 16, 8)
"""The multiprocessors of an H200, and how many of them are in each part of the chip. A cluster stays within
a part; the 8 in none take clusters of one or two blocks. So its driver's occupancy calculator counts clusters
of up to 8 blocks, with 1, 2 or 3 blocks on a multiprocessor."""

BESIDE = 0.75
"""Of the time to read the weights, the share that `overlapped` counts beside the work of kernels with rings.
Fitted to the one for the fewest tokens; that for more would have 0.59, but does as well with this."""


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
"""Of all operations, those that cuBLAS does, as fitted to an H200 together with the family that calls it."""


@functools.cache
def speed(device: Device) -> Speed:
    """The device's speed, by arch and number of multiprocessors; of some names the memory is known better."""
    arch = int(device.arch.removeprefix("sm_"))
    core_bytes, mma, dense = _PER_CORE[max((known for known in _PER_CORE if known <= arch), default=80)]
    if "GeForce" in device.name:  # their tensor cores sum in fp32 at half the speed
        mma, dense = mma / 2, dense / 2
    return Speed(_READ * _MEMORY.get(device.name, core_bytes * device.cores), mma, _DENSE * dense)


@functools.cache
def clusters_at_once(of: int, resident: int, cores: int) -> int:
    """How many clusters of `of` blocks run at once when a multiprocessor holds `resident` blocks."""
    if of <= 2:
        return max(1, cores * resident // of)
    return max(1, sum(part * resident // of for part in _PARTS) * cores // _CORES)


def waves_us(
    clusters: int, of: int, resident: int, cores: int, round_us: Callable[[int, float], float]
) -> float:
    """How long clusters of `of` blocks take, of which a multiprocessor holds `resident` blocks at once.

    `round_us` says how long a multiprocessor takes for so many blocks that start together, the most that any
    has, when this share of all clusters runs at once.
    """
    most = clusters_at_once(of, resident, cores)
    full, rest = divmod(clusters, most)
    us = full * round_us(resident, most / clusters) if full else 0.0
    if rest:
        each = range(1, resident + 1)
        us += round_us(next(n for n in each if clusters_at_once(of, n, cores) >= rest), rest / clusters)
    return us
