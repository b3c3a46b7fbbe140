"""Configs for tests on a GPU, where a space that is pruned for speed would leave a kernel untested."""

import math
from dataclasses import replace
from unittest.mock import patch

from autotune.families import prefill, wgmma
from autotune.families.protocol import Family
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.layer import Problem


def whole_space(family: Family, problem: Problem, device: Device) -> list[Config]:
    """The family's space: of `prefill` and `wgmma` also what is estimated to take too long; of `mma`, which
    sm_90 hardly uses, that of an sm_80 of the same size.
    """
    with patch.object(wgmma, "_WORTH_TIMING", math.inf), patch.object(prefill, "_WORTH_TIMING", math.inf):
        return family.space(problem, replace(device, arch="sm_80") if family.name == "mma" else device)
