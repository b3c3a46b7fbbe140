"""What a call of a tuned linear costs the host, beside torch's own linear.

    python benchmarks/overhead.py                    on the GPU if there is one
    python benchmarks/overhead.py --device cpu

Calls are enqueued and not waited for, fewer at a time than the queue of a GPU holds, so the host's clock sees
no kernel. On a CPU the caller is who computes, so there only calls that run nothing say what all else costs.
On a GPU the same calls are also captured: a graph of `Int4Linear` calls takes what a graph of their bare
kernels takes, because nothing of Python is left in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import autotune
from autotune.bench.operands import Activation
from autotune.bench.statistics import Estimate, median_interval
from autotune.bench.timer import GraphTimer, time_round
from autotune.families.workspace import workspace
from autotune.layouts import PackedWeight, QuantizedWeight, random_weight
from autotune.records.lookup import Lookup
from autotune.runtime.linear import Int4Linear
from autotune.runtime.op import int4_linear
from autotune.values.device import Device, find_device
from autotune.values.layer import Layer

Call = Callable[[], object]

_CALLS = 50
"""Calls of a sample; a GPU's queue holds some thousand kernels, and a call has up to ten."""
_ROUNDS = 51


def nothing(x: torch.Tensor, weight: PackedWeight, out: torch.Tensor) -> None:
    """A kernel that is done before it starts."""


def enqueue_us(call: Call, device: Device) -> float:
    """The host's microseconds of a call, while the device has nothing else to do."""
    synchronize(device)
    started = time.perf_counter_ns()
    for _ in range(_CALLS):
        call()
    return (time.perf_counter_ns() - started) / 1e3 / _CALLS


def synchronize(device: Device) -> None:
    if device.kind == "cuda":
        torch.cuda.synchronize(device.index)


def calls_of(linear: Int4Linear, x: torch.Tensor, name: str) -> dict[str, Call]:
    """The module, and its op without the module."""
    arguments = (x, linear.qweight, linear.scales, linear.zeros, linear.bias, linear.plans.handle)
    return {
        f"Int4Linear, {name}": lambda: linear(x),
        f"its op alone, {name}": lambda: int4_linear(*arguments),
    }


def host_calls(
    weight: QuantizedWeight, tuned: Int4Linear, x: torch.Tensor
) -> dict[str, Callable[[], object]]:
    """Who takes part: torch's linear, ours with a plan that runs nothing, and on a GPU ours as it is."""
    layer, device = weight.layer, tuned.plans.device
    dense = torch.nn.Linear(layer.k, layer.n, bias=False, device=x.device, dtype=x.dtype)
    empty = autotune.kernel(space={}, device=device.kind)(nothing).lookup(device.torch_name)
    without = Int4Linear.from_quantized(weight, lookup=empty).eval()
    calls = calls_of(without, x, "a plan that runs nothing")
    if device.kind == "cpu":
        return calls
    plan, packed = tuned.plans.plan(len(x)), packed_of(tuned)
    out = x.new_empty(len(x), layer.n)
    scratch = workspace(x.device, plan.workspace_bytes(len(x)))
    calls |= calls_of(tuned, x, "tuned")
    calls["its plan alone, tuned"] = lambda: plan.run(x, packed, None, out, scratch)
    calls["torch.nn.Linear"] = lambda: dense(x)
    return calls


def packed_of(linear: Int4Linear) -> PackedWeight:
    kind = linear.plans.device.kind
    return PackedWeight(linear.layer, kind, linear.qweight, linear.scales, linear.zeros)


class Module:
    """A module in the place of a plan, so that the same timer takes both."""

    def __init__(self, linear: Int4Linear) -> None:
        self._linear = linear

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return 0

    def run(self, x: torch.Tensor, *_: object) -> None:
        self._linear(x)


def graph_samples(linear: Int4Linear, x: torch.Tensor) -> dict[str, list[float]]:
    """Microseconds of a call in a graph: of the module, and of its bare kernel."""
    activations = [Activation(x, x.new_empty(len(x), linear.layer.n))]
    copies = [packed_of(linear)] * _CALLS
    plans = {
        "Int4Linear, in a graph": Module(linear),
        "its plan alone, in a graph": linear.plans.plan(len(x)),
    }
    timers = [GraphTimer(plan, copies, activations) for plan in plans.values()]
    rounds = [time_round(timers) for _ in range(_ROUNDS)]
    return dict(zip(plans, map(list, zip(*rounds, strict=True)), strict=True))


def show(name: str, estimate: Estimate) -> None:
    print(f"{name:<40} {estimate.median:7.2f}  {estimate.low:7.2f} to {estimate.high:.2f}")


def main() -> None:
    """Take the samples in turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--m", type=int, default=1, help="tokens of a call")
    parser.add_argument("--n", type=int, help="out_features; 4096, or 64 on a CPU")
    parser.add_argument("--k", type=int, help="in_features, likewise")
    parser.add_argument("--db", default=None, help="database to look in")
    options = parser.parse_args()
    device = find_device(options.device)
    usual = 4096 if device.kind == "cuda" else 64
    n, k = options.n or usual, options.k or usual
    layer = Layer(n, k, group_size=min(k, 128))
    weight = random_weight(layer, torch.Generator(device.torch_name).manual_seed(0))
    tuned = Int4Linear.from_quantized(weight, lookup=Lookup(device, options.db)).eval()
    x = torch.randn(options.m, layer.k, device=device.torch_name).half()
    with torch.inference_mode():
        calls = host_calls(weight, tuned, x)
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(_ROUNDS):
            for name, call in calls.items():
                samples[name].append(enqueue_us(call, device))
        if device.kind == "cuda":
            samples |= graph_samples(tuned, x)
    config = tuned.plans.answer(options.m).config
    print(f"{device.name}, m={options.m}, {layer}, {config}: microseconds of a call, with 95 % intervals")
    for name, taken in samples.items():
        # The first round loads what is loaded once.
        show(name, median_interval(taken[1:]))


if __name__ == "__main__":
    main()
