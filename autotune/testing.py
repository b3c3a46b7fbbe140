"""What every kernel family must fulfil, as checks that a family's own tests run:

    @pytest.mark.parametrize("check", autotune.testing.CHECKS)
    def test_my_family(check):
        check(FAMILY)

Each takes a family, raises AssertionError with the config that fails, and SkipTest where it cannot run here.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import SkipTest

from autotune.bench.operands import Operands
from autotune.bench.verify import Verifier
from autotune.families.protocol import Family, Launch
from autotune.families.workspace import COUNTER_BYTES
from autotune.jit import compiler
from autotune.jit.building import build_all
from autotune.jit.sources import source_folder
from autotune.jit.unit import Unit
from autotune.values.config import Config
from autotune.values.device import Device, cpu_device, cuda_devices, usable_cpus
from autotune.values.errors import CompileError
from autotune.values.layer import Layer, Problem

GPUS = (
    Device("cuda", 0, "NVIDIA H200", "sm_90", 132, 60 << 20, 232448, 140 << 30),
    Device("cuda", 0, "NVIDIA A100-SXM4-80GB", "sm_80", 108, 40 << 20, 166912, 80 << 30),
)
"""Devices for checks that run nothing."""
LAYERS = (
    Layer(n=4096, k=4096, group_size=128),
    Layer(n=1376, k=2048, group_size=64, dtype="bf16"),
    Layer(n=22016, k=4096, group_size=32, zero_point=False),
    Layer(n=72, k=4104, group_size=-1),
)
SMALL_LAYERS = (
    Layer(n=136, k=512, group_size=64),
    Layer(n=72, k=264, group_size=-1, dtype="bf16"),
    Layer(n=520, k=1024, group_size=128, zero_point=False),
)
"""Layers for checks that run kernels."""
TOKENS = (1, 3, 8, 33, 64, 100, 300, 2048)

_MOST_THREADS, _MOST_BLOCKS = 1024, 65535
_COMPILED = 10
"""Configs of a family whose geometry is compiled."""


def check_space(family: Family) -> None:
    """Spaces hold valid configs, each once, and the default is valid; other tunables are refused."""
    defaults = 0
    for problem, device in _problems(family):
        space, default = family.space(problem, device), family.default(problem, device)
        where = f"{problem} on {device.name}"
        _expect(len(space) == len(set(space)), f"the space of {where} has a config twice")
        _expect(default is not None or not space, f"{where} has a space but no default")
        defaults += default is not None
        for config in dict.fromkeys((*space, *((default,) if default else ()))):
            _expect(config.family == family.name, f"{config} names another family than {family.name}")
            _expect(Config.parse(str(config)) == config, f"{config} does not read back from its text")
            reason = family.reject(config, problem, device)
            _expect(reason is None, f"{config} of {where} is rejected: {reason}")
            more = replace(config, values=(*config.values, ("no_such_tunable", 1)))
            _expect(family.reject(more, problem, device) is not None, f"{more} is accepted")
    _expect(defaults > 0, f"{family.name} has no default for any problem of these checks")


def check_estimates(family: Family) -> None:
    """Every config has an estimate, positive and finite."""
    for problem, device in _problems(family):
        for config in _considered(family, problem, device):
            us = family.estimate(config, problem, device)
            _expect(0 < us < math.inf, f"{config} is estimated to take {us} µs for {problem}")


def check_launches(family: Family) -> None:
    """What is launched stays within the device's limits, and is the same each time that it is asked for."""
    for problem, device in _problems(family):
        for config in _considered(family, problem, device):
            unit, launches = (
                (family.unit(config, problem.layer, device), family.launches(config, problem, device))
                for _ in range(2)
            )
            _expect(unit == launches, f"{config} has another unit or other launches when asked again")
            made, launched = unit
            _expect((made is None) == (not launched), f"{config} has a unit or launches, but not both")
            for launch in launched:
                _expect(_is_within_limits(launch, device), f"{config} for {problem}: {launch} is too large")


def check_geometry(family: Family) -> None:
    """The device code says the same of a launch as Python: `geometry.cu` beside the source exports it.

    It is compiled with the unit's defines and those of csrc/cuda/common/exported.cuh.
    """
    chosen = list(_with_geometry(family))
    if not chosen:
        raise SkipTest(f"{family.name} has no geometry.cu")
    if compiler.find_compiler() is None:
        raise SkipTest("no CUDA compiler here")
    some = random.Random(family.name).sample(chosen, min(_COMPILED, len(chosen)))
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for (config, _, launch), exported in zip(
            some, pool.map(compiler.exported, (unit for _, unit, _ in some)), strict=True
        ):
            _expect({"threads", "shared_bytes"} <= exported.keys(), "geometry.cu exports too little")
            said = {name: value for name, value in _said(launch).items() if name in exported}
            _expect(exported == said, f"{config}: the device code exports {exported}, Python has {said}")


def check_results(family: Family) -> None:
    """On this machine, results are those of the scheme's reference, with the same bits twice, and nothing is
    written beside them: for the default and some other configs.
    """
    here: tuple[Device, ...] = (cpu_device(),) if family.kind == "cpu" else cuda_devices()[:1]
    if not here:
        raise SkipTest("no GPU here")
    for layer, device in itertools.product(SMALL_LAYERS, here):
        operands = Operands.random(layer, device, family.layout)
        for m in TOKENS[:-1]:
            problem = Problem(layer, m)
            configs = list(_considered(family, problem, device, most=3))
            units = [family.unit(config, layer, device) for config in configs]
            built = build_all(unit for unit in units if unit is not None)
            verifier = Verifier(operands, m, seed=m)
            for config, unit in zip(configs, units, strict=True):
                cubin = None if unit is None else built[unit.key]
                if isinstance(cubin, CompileError):
                    raise AssertionError(f"{config} does not compile: {cubin}")
                error = verifier.error(family.plan(config, layer, device, cubin))
                _expect(error is None, f"{config} for {problem} is wrong: {error}")


CHECKS = (check_space, check_estimates, check_launches, check_geometry, check_results)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _problems(family: Family) -> Iterator[tuple[Problem, Device]]:
    devices = (cpu_device(),) if family.kind == "cpu" else GPUS
    for layer, m, device in itertools.product(LAYERS, TOKENS, devices):
        yield Problem(layer, m), device


def _considered(family: Family, problem: Problem, device: Device, most: int = 50) -> Iterable[Config]:
    """The default, and some of all valid configs."""
    default, valid = family.default(problem, device), family.valid(problem, device)
    some = random.Random(str(problem)).sample(valid, min(most, len(valid)))
    return dict.fromkeys((*((default,) if default else ()), *some))


def _is_within_limits(launch: Launch, device: Device) -> bool:
    x, y, z = launch.grid
    blocks = 0 < x < 1 << 31 and 0 < y <= _MOST_BLOCKS and 0 < z <= _MOST_BLOCKS
    threads = 0 < launch.threads <= _MOST_THREADS and launch.threads % 32 == 0
    return blocks and threads and 0 <= launch.shared_bytes <= device.shared_bytes


def _with_geometry(family: Family) -> Iterator[tuple[Config, Unit, Launch]]:
    """Configs of one launch, with the unit that exports its geometry."""
    for problem, device in _problems(family):
        for config in _considered(family, problem, device, most=4):
            unit, launches = (
                family.unit(config, problem.layer, device),
                family.launches(config, problem, device),
            )
            if unit is None or len(launches) > 1:
                continue
            source = str(Path(unit.source).with_name("geometry.cu"))
            if (source_folder() / source).is_file():
                defines = (*unit.defines, *_launch_defines(problem, launches[0]))
                yield config, replace(unit, source=source, defines=defines), launches[0]


def _launch_defines(problem: Problem, launch: Launch) -> Iterator[tuple[str, int]]:
    x, y, z = launch.grid
    numbers = {"TOKENS": problem.m, "N": problem.layer.n, "K": problem.layer.k, "GRID_X": x, "GRID_Y": y}
    numbers |= {"GRID_Z": z, "ARGUMENT": launch.arguments[0] if launch.arguments else 0}
    return ((f"LAUNCH_{name}", value) for name, value in numbers.items())


def _said(launch: Launch) -> dict[str, int]:
    """By the names of a geometry.cu what Python has."""
    x, y, z = launch.grid
    said = {"grid_x": x, "grid_y": y, "grid_z": z, "threads": launch.threads, "box_rows": launch.box_rows}
    return said | {"shared_bytes": launch.shared_bytes, "counter_bytes": COUNTER_BYTES}
