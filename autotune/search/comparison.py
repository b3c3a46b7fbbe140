"""Compares what a model would run now with its default config, torch's matmul and the roofline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autotune.bench.compare import Comparison, compare
from autotune.bench.health import use
from autotune.bench.operands import Operands
from autotune.bench.roofline import measure_peaks
from autotune.families import registry
from autotune.families.protocol import Plan
from autotune.jit import compiler
from autotune.records.lookup import Answer, Lookup
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import Problem


def compare_problems(
    problems: Sequence[Problem], lookup: Lookup, energy: bool = False
) -> Iterator[tuple[Answer, Comparison]]:
    """Measure every problem's looked-up config side by side with the others, few tokens first.

    A GPU that has just multiplied thousands of tokens lowers its clock for a while, so those come last.

    Raises:
        AutotuneError: a config's output is wrong, or its kernel cannot be made.
    """
    device = lookup.device
    use(device)
    layers = {problem.layer for problem in problems}
    for dtype in {layer.dtype for layer in layers}:
        measure_peaks(device, dtype)  # before the device is warm
    operands = {layer: Operands.random(layer, device) for layer in layers}
    for problem in sorted(problems, key=lambda each: (each.m, each.layer)):
        layer = problem.layer

        def plan_of(config: Config, problem: Problem = problem) -> Plan:
            return _plan(config, problem, device, lookup)

        answer = lookup.answer(problem)
        default = registry.default_config(problem, device)
        yield answer, compare(problem, operands[layer], answer.config, default, plan_of, energy)


def _plan(config: Config, problem: Problem, device: Device, lookup: Lookup) -> Plan:
    family = registry.family_of(config)
    unit = family.unit(config, problem.layer, device)
    cubin = None if unit is None else lookup.binary(unit.key) or compiler.build(unit)
    return family.plan(config, problem.layer, device, cubin)
