"""Many units at once, in threads or in processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from autotune.jit.compiler import build, cached, compiler_version
from autotune.jit.unit import Unit
from autotune.values.device import usable_cpus
from autotune.values.errors import CompileError
from autotune.values.parent import live_no_longer_than_the_parent

_LOG = logging.getLogger(__name__)
_NICENESS = 10
# NVRTC works outside the interpreter lock, but its threads hold each other up. Kernels a second on 32 cores:
# one thread 4, 32 threads 31, 16 processes 40, 32 processes 70.
_USEFUL_THREADS = 8

Built = dict[str, "bytes | CompileError"]


def build_all(
    units: Iterable[Unit],
    workers: int | None = None,
    on_done: Callable[[str, bytes | CompileError], None] = lambda *_: None,
    *,
    processes: bool = False,
) -> Built:
    """Cubins by `unit.key`, built in parallel; a unit that does not build has its error instead.

    Equal units are built once, in the order in which they come, the first while others are still to come.
    `workers` is the usable CPUs by default. `processes` may be started where threads would gain nothing more
    from the cores; like all that multiprocessing spawns they import the main module.
    `on_done(key, what was built)` is called from this thread after each unit.

    Raises:
        CompileError: there is no compiler at all.
    """
    cores = workers or usable_cpus()
    pool = _processes(cores) if processes and cores > _USEFUL_THREADS else _threads(cores)
    built: Built = {}
    wanted: dict[str, Unit] = {}
    running: dict[Future[bytes | CompileError], str] = {}
    try:
        for unit in units:
            if not wanted:
                compiler_version()
            if unit.key not in wanted:
                wanted[unit.key] = unit
                running[_start(pool, unit)] = unit.key
        for future in as_completed(running):
            if not isinstance(future.exception(), BrokenProcessPool):
                built[running[future]] = future.result()
                on_done(running[future], future.result())
    finally:
        pool.shutdown(cancel_futures=True)
    if len(built) < len(wanted):
        _LOG.warning("a process that compiled was killed: threads compile the rest")
        rest = (unit for key, unit in wanted.items() if key not in built)
        built |= build_all(rest, workers, on_done)
    return built


def _threads(workers: int) -> Executor:
    return ThreadPoolExecutor(workers, thread_name_prefix="compile", initializer=_step_back)


def _processes(workers: int) -> Executor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_process)


def _start_process() -> None:
    live_no_longer_than_the_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides
    _step_back()


def _step_back() -> None:
    """Let whatever else runs have the cores first: a worker that starts or measures meanwhile."""
    if sys.platform == "linux":  # where it is of this thread; elsewhere it would be of the process
        os.nice(_NICENESS)


def _start(pool: Executor, unit: Unit) -> Future[bytes | CompileError]:
    found: Future[bytes | CompileError] = Future()
    cubin = cached(unit)
    if cubin is not None:
        found.set_result(cubin)
        return found
    try:
        return pool.submit(_build_or_error, unit)
    except BrokenProcessPool as error:
        found.set_exception(error)
        return found


def _build_or_error(unit: Unit) -> bytes | CompileError:
    try:
        return build(unit)
    except CompileError as error:
        return error
