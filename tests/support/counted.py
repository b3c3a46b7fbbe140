"""Two families for the CPU whose speed and rightness a test chooses, and a worker that knows no other.

The tunable `calls` is how often the real kernel runs, so that fewer calls are faster for certain; with
`wrong` its result is wiped out.
"""

from __future__ import annotations

import undisturbed
from real_families import simplest_plan

from autotune.families import registry
from autotune.values.config import Config


def config_of(calls: int, wrong: int = 0, family: str = "counted") -> Config:
    return Config.of(family, calls=calls, wrong=wrong)


class Plan:
    def __init__(self, plan, config):
        self.plan, self.calls, self.wrong = plan, config["calls"], config["wrong"]

    def workspace_bytes(self, m):
        return self.plan.workspace_bytes(m)

    def run(self, x, weight, bias, out, workspace):
        for _ in range(self.calls):
            self.plan.run(x, weight, bias, out, workspace)
        if self.wrong:
            out.zero_()


class Counted:
    kind = "cpu"
    most_calls = 1000

    def __init__(self, name):
        self.name = name
        self.default_config = config_of(50, family=name)

    def source_hash(self):
        return f"source of {self.name}"

    def space(self, problem, device):  # noqa: ARG002
        return [config_of(calls, family=self.name) for calls in (1, 20, 50)]

    def default(self, problem, device):  # noqa: ARG002
        return self.default_config

    def estimate(self, config, problem, device):  # noqa: ARG002
        return 1.0  # of equal ones the first family has the default

    def reject(self, config, problem, device):  # noqa: ARG002
        calls = config["calls"]
        return f"calls={calls} is more than {self.most_calls}" if calls > self.most_calls else None

    def unit(self, config, layer, device):  # noqa: ARG002
        return None

    def plan(self, config, layer, device, cubin):  # noqa: ARG002
        return Plan(simplest_plan(layer, device), config)


def families():
    return {name: Counted(name) for name in ("counted", "other")}


def work(pipe, device):
    """The worker's entry, with these families instead of the real ones."""
    registry.families = families
    undisturbed.work(pipe, device)
