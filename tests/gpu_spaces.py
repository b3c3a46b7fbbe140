"""Configs for tests on a GPU, where a space that is pruned for speed would leave a kernel untested."""

from dataclasses import replace

from autotune.config import Config
from autotune.device import Device
from autotune.kernels.family import Family
from autotune.layer import Problem


def whole_space(family: Family, problem: Problem, device: Device) -> list[Config]:
    """The family's space; of `mma`, which sm_90 hardly uses, that of an sm_80 of the same size.

    Of `prefill` also what is estimated to be slow.
    """
    if family.name == "prefill":
        return list(family._estimates(problem, device))
    return family.space(problem, replace(device, arch="sm_80") if family.name == "mma" else device)
