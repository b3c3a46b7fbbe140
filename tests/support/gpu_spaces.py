"""Configs for tests on a GPU, where a space that is pruned for speed would leave a kernel untested."""

import random

from autotune.families import registry
from autotune.jit.building import build_all


def sampled(problem, device, count):
    """`count` valid configs of each family, others for each problem, and the default."""
    chance = random.Random(str(problem))
    spaces = [family.valid(problem, device) for family in registry.families_of(device)]
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
