"""Families whose configs go wrong in every way, one per kind of device, and a worker that knows only them.

The tunable `act` says how: its value is a place in ACTS or GPU_ACTS. `calls` is how often the real kernel
runs, so that a config with fewer calls is faster for certain.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

import undisturbed
from real_families import simplest_plan

from autotune import _C
from autotune.families import registry
from autotune.families.gemm import current_stream
from autotune.jit import compiler
from autotune.jit.unit import Unit
from autotune.values.config import Config
from autotune.values.layer import Problem

PID_FIFO = "AUTOTUNE_TEST_FIFO"


def segfault():
    ctypes.string_at(0)


def loop_holding_the_interpreter():
    # A C function called with the interpreter lock held, as a kernel in an extension may be.
    ctypes.PyDLL(None).pause()


def wait_to_be_killed():
    Path(os.environ[PID_FIFO]).write_text(f"{os.getpid()}\n")
    signal.pause()


def raise_memory_error():
    raise MemoryError("no room for the candidate")


def raise_a_bug():
    raise ZeroDivisionError("a bug of the family")


def nothing():
    pass


ACTS = (
    nothing,
    segfault,
    os.abort,
    loop_holding_the_interpreter,
    raise_memory_error,
    raise_a_bug,
    lambda: os._exit(3),
    wait_to_be_killed,
)
NOTHING, SEGFAULT, ABORT, LOOP, MEMORY, BUG, EXIT, WAIT = range(len(ACTS))


def config_of(act: int, calls: int = 1) -> Config:
    return Config.of("crashing", act=act, calls=calls)


class Plan:
    def __init__(self, plan, config):
        self.plan, self.act, self.calls = plan, ACTS[config["act"]], config["calls"]

    def workspace_bytes(self, m):
        return self.plan.workspace_bytes(m)

    def run(self, *operands):
        self.act()
        for _ in range(self.calls):
            self.plan.run(*operands)


class Crashing:
    name = "crashing"
    kind = "cpu"
    acts: tuple[int, ...] = tuple(range(len(ACTS)))

    def source_hash(self):
        return "crashing"

    def space(self, problem, device):  # noqa: ARG002
        return [config_of(act) for act in self.acts]

    def default(self, problem, device):  # noqa: ARG002
        return config_of(NOTHING, calls=50)

    def estimate(self, config, problem, device):  # noqa: ARG002
        return 1.0

    def reject(self, config, problem, device):  # noqa: ARG002
        return None

    def unit(self, config, layer, device):  # noqa: ARG002
        return None

    def plan(self, config, layer, device, cubin):  # noqa: ARG002
        return Plan(simplest_plan(layer, device), config)


# The loop reads memory that nobody writes: a compiler may drop a loop without any effect.
GPU_SOURCE = """
extern "C" __global__ void illegal(int*) { *reinterpret_cast<volatile int*>(64) = 1; }
extern "C" __global__ void stop(int*) { __trap(); }
extern "C" __global__ void endless(int* zero) { while (*reinterpret_cast<volatile int*>(zero) == 0) {} }
"""
GPU_ACTS = ("nothing", "illegal", "stop", "endless", "out of memory")
ILLEGAL, STOP, ENDLESS, NO_MEMORY = range(1, len(GPU_ACTS))


def gpu_config_of(act: int, calls: int = 1) -> Config:
    return Config.of("crashing_gpu", act=act, calls=calls)


def gpu_unit(device) -> Unit:
    """The broken kernels, in a file beside the kernel cache so that every process finds it."""
    path = Path(os.environ["AUTOTUNE_CACHE"]) / "crashing.cu"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(GPU_SOURCE)
    return Unit(str(path), (), device.arch)


class GpuPlan:
    def __init__(self, plan, config, device, cubin):
        self.plan, self.act, self.calls = plan, GPU_ACTS[config["act"]], config["calls"]
        self.cubin, self.device = cubin, device

    def workspace_bytes(self, m):
        return self.plan.workspace_bytes(m)

    def run(self, x, *operands):
        if self.act == "out of memory":
            x.new_empty(1 << 44)
        elif self.act != "nothing":
            kernel = _C.CudaFunction(self.cubin, self.act, self.device.index)
            zero = x.new_zeros(8)
            kernel.launch((1, 1, 1), 32, 0, current_stream(self.device.index), (zero.data_ptr(),))
        for _ in range(self.calls):
            self.plan.run(x, *operands)


real_families = registry.families


class CrashingGpu:
    name = "crashing_gpu"
    kind = "cuda"

    def source_hash(self):
        return "crashing"

    def space(self, problem, device):  # noqa: ARG002
        return [gpu_config_of(act) for act in range(len(GPU_ACTS))]

    def default(self, problem, device):  # noqa: ARG002
        return gpu_config_of(NOTHING, calls=50)

    def estimate(self, config, problem, device):  # noqa: ARG002
        return 1.0

    def reject(self, config, problem, device):  # noqa: ARG002
        return None

    def unit(self, config, layer, device):  # noqa: ARG002
        return gpu_unit(device)

    def launches(self, config, problem, device):  # noqa: ARG002
        return ()

    def plan(self, config, layer, device, cubin):
        problem = Problem(layer, 1)
        family = next(
            each for each in real_families().values() if each.kind == "cuda" and each.default(problem, device)
        )
        real = family.default(problem, device)
        right = compiler.build(family.unit(real, layer, device))
        return GpuPlan(family.plan(real, layer, device, right), config, device, cubin)


def families():
    return {"crashing": Crashing(), "crashing_gpu": CrashingGpu()}


def work(pipe, device):
    """The worker's entry, with these families instead of the real ones."""
    registry.families = families
    undisturbed.work(pipe, device)


def work_without_start(pipe, device):  # noqa: ARG001
    os._exit(5)


def work_without_operands(pipe, device):
    """A worker that dies whenever it makes operands."""
    from autotune.bench.operands import Operands

    Operands.random = lambda *_: os._exit(4)
    work(pipe, device)
