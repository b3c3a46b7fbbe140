"""The `cpu` family: int4 GEMM in C++ (csrc/cpu), the embedded default where there is no GPU.

Tunables: `tile_n`, the rows of n that one task computes; `split_k`, the parts of k that different tasks
compute and that are summed in order at the end; `unpack_m`, the tokens for which a weight is dequantised into
the first cache once, or 0 to dequantise it in registers, anew for every few tokens; `threads`.
"""

from __future__ import annotations

from itertools import product
from types import MappingProxyType
from typing import TYPE_CHECKING

from autotune import _C
from autotune.families.protocol import Family
from autotune.values.counts import counted
from autotune.values.device import torch_threads
from autotune.values.errors import DeviceError, LayerError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    import torch

    from autotune.layouts import PackedWeight
    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem

_TILES_N = (64, 128, 32, 16)
_SPLITS_K = (1, 2, 4, 8)
_UNPACKS_M = (0, 256)
_DTYPE_CODES = {"fp16": 0, "bf16": 1, "fp32": 2}

_SPLIT_TOKENS = 64
"""Most tokens for which split_k pays: above, its sums move more memory than it balances."""
_UNPACK_TOKENS = 16
"""Fewest tokens for which it may pay to dequantise into the cache; with AVX2 it does from 24 on."""
_DEFAULT_UNPACK_TOKENS = 32
_BUSY_TASKS = 2
"""Tasks for each thread from which on more parts of k add work and balance nothing."""
_LEAST_WORK = 1 << 19
"""Multiply-adds of a thread below which waking another costs more than it does.

In a model it sleeps between calls; a race, whose calls follow each other, does not see that. With 1 << 16 the
210 calls of a token of a 135M model took the calling thread 18 ms on two AVX2 cores, with this 12.6.
"""
_MUCH_WORK = 1 << 20
"""Multiply-adds per thread from which on three idle cores for each busy one are certainly a loss."""

_OPERATIONS_PER_US, _UNPACKED_PER_US = 2e4, 5.5e3
"""Of a thread: what it multiplies and adds, and weights that it dequantises into the cache."""

_EVEN_TASKS = 8
"""Tasks for each thread that leave no thread idle for long at the end."""
_DEFAULT_SHAPES = ((64, 1), (32, 1), (64, 2), (32, 2), (32, 4), (32, 8), (16, 8), (16, 4), (16, 2), (16, 1))
"""(tile_n, split_k), fastest first as long as they give every thread enough tasks."""


class CpuPlan:
    """One config of one layer. Scratch memory belongs to the C++ side, so there is no workspace.

    After `torch.set_num_threads` calls use no more threads than that, and give the same bits.
    """

    def __init__(self, config: Config, layer: Layer) -> None:
        import torch

        self.layer = layer
        tunables = (config["split_k"], config["tile_n"], config["unpack_m"])
        sizes = (layer.n, layer.k, layer.group_size, _DTYPE_CODES[layer.dtype])
        self._numbers = (*sizes, *tunables)
        self._threads = config["threads"]
        self._torch_has, self._torch_takes = torch.get_num_threads, torch_threads()

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        """Always 0."""
        return 0

    def run(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor | None,  # noqa: ARG002
    ) -> None:
        """out[m, n] = x[m, k] @ dequant(weight).T + bias[n]; returns when it is done.

        Raises:
            LayerError: a tensor's shape, dtype, device or strides are not the layer's.
        """
        layer, m = self.layer, x.shape[0]
        if weight.kind != "cpu" or weight.layer != layer:
            raise LayerError(f"the weight is packed for {weight.kind}, {weight.layer}; expected cpu, {layer}")
        dtype = weight.scales.dtype
        _expect("x", x, (m, layer.k), dtype)
        _expect("out", out, (m, layer.n), dtype)
        if bias is not None:
            _expect("bias", bias, (layer.n,), dtype)
        tensors = (x, weight.qweight, weight.scales, weight.zeros, bias, out)
        self.launch(m, *(0 if tensor is None else tensor.data_ptr() for tensor in tensors))

    def launch(self, m: int, x: int, qweight: int, scales: int, zeros: int, bias: int, out: int) -> None:
        """The same of addresses, 0 of zeros or a bias that is not there, and without the checks."""
        threads, allowed = self._threads, self._torch_has()
        # By itself torch has one thread for a core, which limits nobody: a sweep may find two to be faster.
        if allowed < self._torch_takes and allowed < threads:
            threads = allowed
        _C.cpu_matmul(*self._numbers, threads, m, x, qweight, scales, zeros, bias, out)


class CpuFamily(Family):
    """Every layer and m on the CPU, with AVX-512, AVX2 or portable code by what the CPU has."""

    name = "cpu"
    kind = "cpu"
    deterministic = True
    tunables = MappingProxyType(
        {"tile_n": _TILES_N, "split_k": _SPLITS_K, "unpack_m": _UNPACKS_M, "threads": ()}
    )

    def source_hash(self) -> str:
        """Hash of the C++ sources that the extension was built from."""
        return _C.cpu_source_hash()

    def misfit(self, config: Config, problem: Problem, device: Device) -> str | None:
        tile_n, split_k, threads = config["tile_n"], config["split_k"], config["threads"]
        if threads not in _thread_counts(device):
            return f"threads={threads} is not one of {', '.join(map(str, _thread_counts(device)))}"
        return (
            _reject_split(split_k, tile_n, threads, problem)
            or _reject_unpack(config["unpack_m"], split_k)
            or _reject_tasks(split_k, tile_n, threads, problem, device)
        )

    def candidates(self, problem: Problem, device: Device) -> Iterator[Config]:
        unpacks_m = _UNPACKS_M if problem.m >= _UNPACK_TOKENS else (0,)
        for split_k, unpack_m, threads, tile_n in product(
            _SPLITS_K, unpacks_m, _thread_counts(device), _TILES_N
        ):
            yield self.config(tile_n, split_k, unpack_m, threads)

    def default(self, problem: Problem, device: Device) -> Config | None:
        """As many threads as have work, and the fastest tile that gives each of them enough tasks."""
        if self.cannot(problem, device) is not None:
            return None
        # Few rows make work for more threads only by split_k.
        shared = problem.m > _SPLIT_TOKENS or _tiles(16, problem) >= device.cores
        shapes = _many_tokens if problem.m >= _DEFAULT_UNPACK_TOKENS and shared else _few_tokens
        for threads in reversed(_thread_counts(device)):
            for shape in shapes(problem, threads):
                config = self.config(*shape, threads)
                if self.misfit(config, problem, device) is None:
                    return config
        raise DeviceError(f"no config of the cpu family fits {problem} on {device.name}")

    def order(self, config: Config, layer: Layer, device: Device) -> Hashable | None:  # noqa: ARG002
        """Of what is dequantised into the cache; other kernels of one token differ from those of several."""
        return "unpacked" if config["unpack_m"] else None

    def ordered(self, problem: Problem, device: Device) -> Iterator[Config]:
        """Also for fewer tokens than it pays for."""
        for threads, tile_n in product(_thread_counts(device), _TILES_N):
            config = self.config(tile_n, 1, _UNPACKS_M[-1], threads)
            if self.misfit(config, problem, device) is None:
                yield config

    def estimate(self, config: Config, problem: Problem, device: Device) -> float:  # noqa: ARG002
        """As if every thread did as much at any time; no other family is compared with it."""
        us = problem.operations / _OPERATIONS_PER_US
        if config["unpack_m"]:
            times = -(-problem.m // config["unpack_m"])
            us += times * problem.layer.n * problem.layer.k / _UNPACKED_PER_US
        return us / config["threads"]

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> CpuPlan:  # noqa: ARG002
        """Make the config ready for the layer."""
        return CpuPlan(config, layer)


def _few_tokens(problem: Problem, threads: int) -> Iterator[tuple[int, int, int]]:
    """tile_n, split_k and unpack_m that give each thread two tasks, then one, fastest first."""
    for tasks_each in (2, 1) if threads > 1 else (1,):
        for tile_n, split_k in _DEFAULT_SHAPES:
            if _tiles(tile_n, problem) * split_k >= tasks_each * threads:
                yield tile_n, split_k, 0


def _many_tokens(problem: Problem, threads: int) -> Iterator[tuple[int, int, int]]:
    """The largest tile that shares the rows evenly among the threads, else a smaller one."""
    for tile_n in (64, 32, 16):
        if tile_n == 16 or _tiles(tile_n, problem) >= _EVEN_TASKS * threads:
            yield tile_n, 1, _UNPACKS_M[-1]


def _thread_counts(device: Device) -> list[int]:
    """Powers of two up to the cores, and all cores."""
    powers = {1 << bit for bit in range(device.cores.bit_length())}
    return sorted(powers | {device.cores})


def _tiles(tile_n: int, problem: Problem) -> int:
    return -(-problem.layer.n // tile_n)


def _reject_split(split_k: int, tile_n: int, threads: int, problem: Problem) -> str | None:
    if split_k == 1:
        return None
    if split_k > problem.layer.groups:
        return f"split_k={split_k} leaves parts without a group: there are {problem.layer.groups} along k"
    if problem.m > _SPLIT_TOKENS:
        return f"split_k={split_k} moves too much memory above m={_SPLIT_TOKENS}"
    if _tiles(tile_n, problem) * split_k // 2 >= _BUSY_TASKS * threads:
        return f"split_k={split_k} is not needed: half as many parts keep {counted(threads, 'thread')} busy"
    return None


def _reject_unpack(unpack_m: int, split_k: int) -> str | None:
    if unpack_m and split_k > 1:
        return f"unpack_m={unpack_m} is for many tokens, split_k={split_k} for few"
    return None


def _reject_tasks(split_k: int, tile_n: int, threads: int, problem: Problem, device: Device) -> str | None:
    n = problem.layer.n
    if tile_n > 16 and tile_n >= 2 * n:
        return f"tile_n={tile_n} is the same as a smaller one for n={n}"
    tasks = _tiles(tile_n, problem) * split_k
    if tasks < threads:
        return f"threads={threads} would share {tasks} tasks"
    work = problem.m * n * problem.layer.k // threads
    if threads > 1 and work < _LEAST_WORK:
        return f"threads={threads} leaves each only {work} multiply-adds, less than waking it costs"
    if 4 * threads < min(device.cores, tasks) and work > _MUCH_WORK:
        return f"threads={threads} leaves most of {device.cores} cores idle"
    return None


def _expect(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    # Of the ways to ask for the same these are the quickest, and every call of a model asks.
    if tensor.shape != shape or tensor.dtype is not dtype or not tensor.is_contiguous() or not tensor.is_cpu:
        found = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}, strides {tensor.stride()}"
        raise LayerError(f"{name} is {found}; expected contiguous {dtype} {list(shape)} on the CPU")


FAMILY = CpuFamily()
