"""What look-up chooses by: the fastest config, or one with a property that matters more."""

from __future__ import annotations

import os
from typing import Literal, get_args

from autotune.values.errors import ConfigError

Policy = Literal["fast", "deterministic", "batch_invariant", "efficient"]
"""`fast`: the fastest config. `deterministic`: the fastest that gives the same bits at each run.
`batch_invariant`: of each layer configs that give a row the same bits with any number of other rows.
`efficient`: the config whose call takes the least energy, where that was measured."""
POLICIES: tuple[Policy, ...] = get_args(Policy)


def policy_in_force(policy: str | None = None) -> Policy:
    """The policy that somebody named, else that of AUTOTUNE_POLICY, else `fast`.

    Raises:
        ConfigError: there is none of that name.
    """
    named = policy or os.environ.get("AUTOTUNE_POLICY") or "fast"
    for known in POLICIES:
        if named == known:
            return known
    where = "policy" if policy else "AUTOTUNE_POLICY"
    raise ConfigError(f"{where}={named!r} is not one of {', '.join(POLICIES)}")
