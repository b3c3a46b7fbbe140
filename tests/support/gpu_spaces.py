"""Configs for tests on a GPU, where a space that is pruned for speed would leave a kernel untested."""

import math
import random
from dataclasses import replace
from unittest.mock import patch

from autotune.families import prefill, registry, wgmma
from autotune.families.protocol import Family
from autotune.jit.building import build_all
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import Problem


def whole_space(family: Family, problem: Problem, device: Device) -> list[Config]:
    """The family's space: of `prefill` and `wgmma` also what is estimated to take too long; of `mma`, which
    sm_90 hardly uses, that of an sm_80 of the same size.
    """
    with patch.object(wgmma, "_WORTH_TIMING", math.inf), patch.object(prefill, "_WORTH_TIMING", math.inf):
        return family.space(problem, replace(device, arch="sm_80") if family.name == "mma" else device)


def sampled(problem, device, count):
    """`count` configs of each family's space, others for each problem, and the default."""
    chance = random.Random(str(problem))
    spaces = [whole_space(family, problem, device) for family in registry.families_of(device)]
    some = [config for space in spaces for config in chance.sample(space, min(count, len(space)))]
    return {registry.default_config(problem, device), *some}


def plans_of(problems, device, count):
    """(problem, config, plan) of sampled configs, all compiled in parallel first."""
    chosen = [(problem, config) for problem in problems for config in sampled(problem, device, count)]
    units = [registry.family_of(config).unit(config, problem.layer, device) for problem, config in chosen]
    cubins = build_all(units)
    for (problem, config), unit in zip(chosen, units, strict=True):
        plan = registry.family_of(config).plan(config, problem.layer, device, cubins[unit.key])
        yield problem, config, plan
