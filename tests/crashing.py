"""A family for the CPU whose configs go wrong in every way, and a worker that knows it and no other.

The tunable `act` says how: its value is a place in ACTS. `calls` is how often the real kernel runs, so that a
config with fewer calls is faster for certain.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from autotune import worker
from autotune.config import Config
from autotune.kernels import registry
from autotune.kernels.cpu import FAMILY as CPU

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

    def reject(self, config, problem, device):  # noqa: ARG002
        return None

    def unit(self, config, layer, device):  # noqa: ARG002
        return None

    def plan(self, config, layer, device, cubin):
        tile = CPU.plan(Config.of("cpu", tile_n=64, split_k=1, threads=1), layer, device, cubin)
        return Plan(tile, config)


def families():
    return {"crashing": Crashing()}


def work(pipe, device):
    """The worker's entry, with these families instead of the real ones."""
    registry.families = families
    worker.work(pipe, device)


def work_without_start(pipe, device):  # noqa: ARG001
    os._exit(5)


def work_without_operands(pipe, device):
    """A worker that dies whenever it makes operands."""
    from autotune.bench.operands import Operands

    Operands.random = lambda *_: os._exit(4)
    work(pipe, device)


def work_slowly(pipe, device):
    """A worker that gives a kill of the sweep time between any two candidates."""
    wait = worker._Worker._announce

    def announce(self, config):
        time.sleep(0.02)
        wait(self, config)

    worker._Worker._announce = announce
    work(pipe, device)
