"""From the start of a process to its first token, part by part, and what tuning at load would add.

    python benchmarks/first_token.py CHECKPOINT            e2e.py runs it, several times

The parts, in seconds: the imports (torch's begins with Python itself), `context` (of the GPU), `lookup` (the
database, and plans for every linear), `weights` (all else of `autotune.load`), `token` (a prompt of 16 tokens
and the next one). Kernels are compiled and files in memory, as from the second start on. `token again` is the
same pass once more: what the first one took longer, torch needs to load its kernels and libraries at their
first call, which `autotune.warmup` would only move. `tuning` is on top: as llm-awq's TinyChat does when it
loads a model, it warms up the GPU and tries six values of split_k for each distinct layer by the host's
clock, a thousand calls of one weight to warm up and a thousand to time; here with kernels of ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.families.protocol import Plan
    from autotune.runtime.linear import Int4Linear
    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Layer

_PROMPT = 16
_FAMILY = {"cuda": "mma", "cpu": "cpu"}
_ITERATIONS = {"cuda": 1000, "cpu": 5}
_WARM_MATMULS = {"cuda": 100, "cpu": 1}


def starts(folder: str, device: str, db: str | None, started: float) -> dict[str, float]:
    """Seconds of each part; `started` is the wall clock's time when the process was asked for."""
    clock = time.perf_counter
    import torch

    seconds, begun = {"import torch": time.time() - started}, clock()
    from transformers import AutoModelForCausalLM  # noqa: F401
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    seconds["import transformers"], begun = clock() - begun, clock()
    import autotune
    from autotune.records.lookup import Lookup
    from autotune.values.device import find_device

    load = autotune.load
    seconds["import autotune"] = clock() - begun
    target, begun = find_device(device), clock()
    torch.zeros(1, device=target.torch_name)
    synchronize(target)
    seconds["context"], begun = clock() - begun, clock()
    Lookup(target, db)
    read_s, begun = clock() - begun, clock()
    model = load(folder, target.torch_name, db=db)
    synchronize(target)
    plans_s = model.autotune_report.plans_s
    # The load read the database once more.
    seconds["lookup"], seconds["weights"] = read_s + plans_s, clock() - begun - plans_s - read_s
    seconds["token"] = token_s(model, target)
    seconds["start to token"] = sum(seconds.values())
    seconds["token again"] = token_s(model, target)
    seconds["tuning"] = tuning_s(model, target)
    return seconds


def token_s(model: Any, device: Device) -> float:
    """Seconds that a prompt and its next token take."""
    import torch

    prompt = torch.ones((1, _PROMPT), dtype=torch.long, device=device.torch_name)
    started = time.perf_counter()
    with torch.no_grad():
        int(model(prompt).logits[0, -1].argmax())
    return time.perf_counter() - started


def tuning_s(model: Any, device: Device) -> float:
    """Seconds that trying six configs of each distinct layer takes; their kernels are compiled before."""
    from autotune.runtime.linear import Int4Linear

    distinct = {each.layer: each for each in model.modules() if isinstance(each, Int4Linear)}
    plans = dict(zip(distinct.values(), plans_of(list(distinct), device), strict=True))
    started = time.perf_counter()
    for linear, candidates in plans.items():
        warm_up(device)
        min(candidates, key=lambda plan: time_us(plan, linear, device))
    return time.perf_counter() - started


def plans_of(layers: list[Layer], device: Device) -> list[list[Plan]]:
    """A plan of each layer for each value of split_k that one token can have, six at most."""
    from autotune.families import registry
    from autotune.jit.building import build_all

    family = registry.families()[_FAMILY[device.kind]]
    units = {
        layer: {config: family.unit(config, layer, device) for config in six_configs(layer, device)}
        for layer in layers
    }
    # All at once, because a compiler takes one core.
    cubins = build_all(unit for of_layer in units.values() for unit in of_layer.values() if unit)
    return [
        [
            family.plan(config, layer, device, cubins[unit.key] if unit else None)
            for config, unit in of_layer.items()
        ]
        for layer, of_layer in units.items()
    ]


def six_configs(layer: Layer, device: Device) -> list[Config]:
    from autotune.families import registry
    from autotune.values.layer import Problem

    configs: dict[int, Config] = {}
    for config in registry.space(Problem(layer, 1), device, (_FAMILY[device.kind],)):
        configs.setdefault(config["split_k"], config)
    return list(configs.values())[:6]


def warm_up(device: Device) -> None:
    import torch

    a = torch.randn(4096, 4096).to(device.torch_name)
    for _ in range(_WARM_MATMULS[device.kind]):
        torch.mm(a, a)


def time_us(plan: Plan, linear: Int4Linear, device: Device) -> float:
    """The median of calls of one warm weight, each waited for."""
    import torch

    from autotune.families.workspace import workspace
    from autotune.layouts import PackedWeight

    x = torch.randn((1, linear.layer.k), device=device.torch_name).to(linear.scales.dtype)
    out = x.new_empty((1, linear.layer.n))
    weight = PackedWeight(linear.layer, device.kind, linear.qweight, linear.scales, linear.zeros)
    scratch = workspace(x.device, plan.workspace_bytes(1))
    for _ in range(_ITERATIONS[device.kind]):
        plan.run(x, weight, None, out, scratch)
    samples = []
    for _ in range(_ITERATIONS[device.kind]):
        synchronize(device)
        started = time.perf_counter()
        plan.run(x, weight, None, out, scratch)
        synchronize(device)
        samples.append(time.perf_counter() - started)
    return statistics.median(samples) * 1e6


def synchronize(device: Device) -> None:
    import torch

    if device.kind == "cuda":
        torch.cuda.synchronize(device.index)


def main() -> None:
    """Measure this very process, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--db", default=None, help="database to look in")
    parser.add_argument(
        "--started", type=float, default=time.time(), help="the wall clock when it was asked for"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(json.dumps(starts(options.folder, options.device, options.db, options.started)))


if __name__ == "__main__":
    main()
