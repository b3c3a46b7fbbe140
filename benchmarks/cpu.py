"""The cpu family against what a torch user has: dense matmuls, dequantise + matmul, and torch's int4 kernel.

    python benchmarks/cpu.py                         4096x4096, group 128, bf16 and fp32, m = 1, 2, 4, 8
    python benchmarks/cpu.py --n 11008 --m 1,256 --dtype fp16 --json

Every contestant is verified against the fp32 reference first. Then all are timed in turn, round by round,
with the same number of threads; each rotates over copies of its weight that exceed three times the last
cache. Before each sample comes a pause in which the threads of the contestant before go to sleep (those of
OpenMP spin for milliseconds and would take a core from the next one), and a call that is not timed; a sample
is the mean of the calls that then fit in about 2 ms. The table shows medians and, in brackets, the 10th to
90th percentile of the samples.

`dense` is torch's linear on the dequantised weight in the layer's dtype, `dense fp32` the same in fp32, with
x in fp32 already. `dequantise` starts from one byte per weight, which spares it the unpacking of nibbles that
a real int4 checkpoint needs. `torch int4` is torch._weight_int4pack_mm_for_cpu, measured for bf16 (its other
dtypes are not vectorised). `tuned` is the fastest config of a short race over the whole space.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from autotune.bench.operands import Operands
from autotune.bench.verify import Verifier
from autotune.families.cpu import FAMILY
from autotune.layouts import QuantizedWeight, reference_matmul
from autotune.layouts import dequantize as weights_of
from autotune.values.config import Config
from autotune.values.device import Device, cpu_device
from autotune.values.layer import Layer, Problem

_SAMPLE_S = 2e-3
_PAUSE_S = 1e-2
_RACE_ROUNDS = 7


@dataclass
class Contestant:
    """A way to do the product; `call(i)` does it with weight copy i modulo `copies`."""

    name: str
    call: Callable[[int], torch.Tensor]
    copies: int
    config: str | None = None
    samples_us: list[float] = field(default_factory=list)
    calls: int = 1
    position: int = 0

    def prepare(self) -> None:
        """Choose how many calls make a sample."""
        self.sample()
        self.calls = max(1, round(_SAMPLE_S / (self.samples_us.pop() * 1e-6)))

    def sample(self) -> None:
        """Time one sample."""
        time.sleep(_PAUSE_S)
        self._next()
        begin = time.perf_counter()
        for _ in range(self.calls):
            self._next()
        self.samples_us.append((time.perf_counter() - begin) * 1e6 / self.calls)

    def _next(self) -> None:
        self.call(self.position % self.copies)
        self.position += 1

    @property
    def median_us(self) -> float:
        return statistics.median(self.samples_us)

    @property
    def spread_us(self) -> tuple[float, float]:
        """10th and 90th percentile."""
        deciles = statistics.quantiles(self.samples_us, n=10)
        return deciles[0], deciles[-1]


def ours(name: str, config: Config, operands: Operands, x: torch.Tensor) -> Contestant:
    """A config of the cpu family."""
    layer = operands.layer
    plan = FAMILY.plan(config, layer, operands.device, None)
    out = torch.empty(len(x), layer.n, dtype=x.dtype)

    def call(i: int) -> torch.Tensor:
        plan.run(x, operands.copies[i], None, out, None)
        return out

    return Contestant(name, call, len(operands.copies), str(config))


def dequantise(weight: QuantizedWeight, x: torch.Tensor, device: Device) -> Contestant:
    """(q - z) * s in x's dtype at each call, then torch.matmul."""
    layer = weight.layer
    assert weight.zeros is not None
    q = weight.q.view(layer.n, layer.groups, layer.group_size)
    copies = [q.clone() for _ in range(_copies(device, q.nbytes))]
    zeros = weight.zeros.T.unsqueeze(2).to(x.dtype).contiguous()
    scales = weight.scales.T.unsqueeze(2).contiguous()

    def call(i: int) -> torch.Tensor:
        w = copies[i].to(x.dtype).sub_(zeros).mul_(scales)
        return x @ w.view(layer.n, layer.k).T

    return Contestant("dequantise", call, len(copies))


def dense(weight: QuantizedWeight, x: torch.Tensor, device: Device, dtype: torch.dtype) -> Contestant:
    """torch's linear on the weight in `dtype`."""
    name = "dense fp32" if dtype == torch.float32 else "dense"
    first, tokens = weights_of(weight).to(dtype), x.to(dtype)
    copies = [first.clone() for _ in range(_copies(device, first.nbytes))]
    return Contestant(name, lambda i: torch.nn.functional.linear(tokens, copies[i]), len(copies))


def torch_int4(weight: QuantizedWeight, x: torch.Tensor, device: Device) -> Contestant:
    """torch's own kernel, w = (q - 8) * s + t with t = (8 - z) * s."""
    layer = weight.layer
    assert weight.zeros is not None
    packed = torch._convert_weight_to_int4pack_for_cpu(weight.q.int(), 1)
    copies = [packed.clone() for _ in range(_copies(device, packed.nbytes))]
    shifts = (8 - weight.zeros.float()) * weight.scales.float()
    scales = torch.stack((weight.scales.float(), shifts), dim=-1).to(x.dtype).contiguous()

    def call(i: int) -> torch.Tensor:
        return torch._weight_int4pack_mm_for_cpu(x, copies[i], layer.group_size, scales)

    return Contestant("torch int4", call, len(copies))


def _copies(device: Device, nbytes: int) -> int:
    return 1 + -(-3 * device.l2_bytes // nbytes)


def tune(operands: Operands, x: torch.Tensor, verifier: Verifier) -> Config:
    """The fastest config of the space, from a few rounds."""
    device = operands.device
    space = FAMILY.space(Problem(operands.layer, len(x)), device)
    for config in space:
        error = verifier.error(FAMILY.plan(config, operands.layer, device, None))
        if error is not None:
            raise SystemExit(f"{config}: {error}")
    racers = [ours(str(config), config, operands, x) for config in space]
    race(racers, _RACE_ROUNDS)
    return min(zip(racers, space, strict=True), key=lambda pair: pair[0].median_us)[1]


def race(contestants: list[Contestant], rounds: int) -> None:
    """Sample every contestant once per round."""
    for contestant in contestants:
        contestant.prepare()
    for _ in range(rounds):
        for contestant in contestants:
            contestant.sample()


def measure(operands: Operands, m: int, rounds: int) -> list[Contestant]:
    """All contestants of a problem, verified and timed."""
    layer, device = operands.layer, operands.device
    x = operands.tokens(m, seed=m)
    tuned = tune(operands, x, Verifier(operands, m, seed=m + 1))
    contestants = [
        ours("default", FAMILY.default(Problem(layer, m), device), operands, x),
        ours("tuned", tuned, operands, x),
        dense(operands.weight, x, device, torch.float32),
        dequantise(operands.weight, x, device),
    ]
    if layer.dtype != "fp32":
        contestants.append(dense(operands.weight, x, device, x.dtype))
    if layer.dtype == "bf16":
        contestants.append(torch_int4(operands.weight, x, device))
    expected = reference_matmul(operands.weight, x)
    for contestant in contestants:
        # The others round their weights to x's dtype: this only shows that they do the same product.
        error = float((contestant.call(0).float() - expected).abs().max() / expected.abs().max())
        if not error < 0.05:
            raise SystemExit(
                f"{contestant.name} is off by {error:.2g} of the largest output for m={m}, {layer}"
            )
    race(contestants, rounds)
    return contestants


def report(problem: Problem, contestants: list[Contestant]) -> list[dict[str, object]]:
    """One row for each contestant; `ratio` is its time over the default config's."""
    base = contestants[0].median_us
    return [
        {
            "m": problem.m,
            "n": problem.layer.n,
            "k": problem.layer.k,
            "group_size": problem.layer.group_size,
            "dtype": problem.layer.dtype,
            "contestant": contestant.name,
            "config": contestant.config,
            "median_us": contestant.median_us,
            "low_us": contestant.spread_us[0],
            "high_us": contestant.spread_us[1],
            "ratio": contestant.median_us / base,
        }
        for contestant in contestants
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--dtype", default="bf16,fp32", help="of fp16, bf16, fp32; comma-separated")
    parser.add_argument("--m", default="1,2,4,8", help="numbers of tokens, comma-separated")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = cpu_device()
    torch.set_num_threads(device.cores)
    rows = []
    if not options.json:
        print(f"{device.name}, {device.arch}, n={options.n} k={options.k} group_size={options.group_size}")
        print(
            f"{'dtype':6}{'m':>5}  {'contestant':12}{'median_us':>10} {'[p10, p90]':>18}{'ratio':>8}  config"
        )
    for dtype in options.dtype.split(","):
        layer = Layer(options.n, options.k, group_size=options.group_size, dtype=dtype)
        operands = Operands.random(layer, device)
        for m in map(int, options.m.split(",")):
            measured = report(Problem(layer, m), measure(operands, m, options.rounds))
            rows += measured
            for row in measured if not options.json else ():
                spread = f"[{row['low_us']:.0f}, {row['high_us']:.0f}]"
                figures = f"{row['median_us']:10.0f} {spread:>18}{row['ratio']:8.2f}"
                print(f"{dtype:6}{m:5}  {row['contestant']:12}{figures}  {row['config'] or ''}", flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
