"""Ours beside torch's matmul and other people's int4 kernels, for 1 to 8,192 tokens, on the same problems.

    python benchmarks/peers.py results.jsonl --plan                     what is to do, and how long it takes
    python benchmarks/peers.py results.jsonl --time-limit 570
    python benchmarks/peers.py results.jsonl --time-limit 570 --long
    python benchmarks/peers_report.py results.jsonl                     tables
    python benchmarks/chart.py results.jsonl chart.svg                  the figure

Columns are what look-up answers (`stored`), the default config, torch's matmul on the dequantised weight, and
the peers whose packages are installed; `peers_columns.py` has them. All are compared with an fp32 reference,
then timed in one run: round by round, in a new order each time, each in a CUDA graph that rotates over
copies of its own weight, more than the last cache holds. The layers are the fused linears of the `--models`,
of which gemma2-9b is one that autotune has no records of.

With `--long` each runs for 2 s at a stretch, the first quarter unmeasured, so that what a GPU does at its
power limit is seen: clock, power and joules per call stand beside the time.

A line is written as soon as its layer and number of tokens are done. Called again, the same command goes on
where it was, also after `--time-limit` seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peers_columns import FOREIGN, LARGE_M, Contestant, compile_ahead, entered, ready
from peers_report import GROUP_SIZE, MODELS, read, sizes

from autotune.bench.monitor import Monitor, monitor_for
from autotune.bench.operands import Activation, Operands
from autotune.bench.race import Rounds, Runner
from autotune.bench.roofline import measure_peaks
from autotune.bench.statistics import Estimate, median_interval
from autotune.bench.timer import GraphTimer, time_round
from autotune.records.lookup import Lookup
from autotune.values.device import Device, device_id, find_device
from autotune.values.layer import Layer, Problem

FEW = "1,2,3,4,7,8,12,16,24,33,40,48,64,72,100,128,150,200,256"
MANY = "333,400,512,700,1024,1500,2048,3000,4096,6000,8192"
SHORT, LONG = f"{FEW},{MANY}", "512,1024,2048,4096,8192"
LONG_S = 2.0
_WARM_S = 0.5
_NOT_LONG = ("default", "torch_int4", "gemlite")
_COLUMN_S = 0.2
"""What the samples of a column may take; there are as many rounds as fit in."""
_ROUNDS = range(9, 26)
_LONG_GRAPH_US = 20e3

# Guesses for --plan and --time-limit: the operations and bytes of a microsecond, and seconds.
_OPERATIONS, _BYTES = 5e8, 3e6
_LAYER_S, _ROW_S = 15.0, 0.2


def todo(options: argparse.Namespace, done: Sequence[dict[str, Any]]) -> list[tuple[Layer, list[int]]]:
    """The layers with the numbers of tokens that have no line yet."""
    mode = "long" if options.long else "short"
    known = {(row["n"], row["k"], row["m"]) for row in done if row.get("mode", "short") == mode}
    layers = dict.fromkeys(size for model in options.models for size in sizes(model).values())
    left = ((n, k, [m for m in options.m if (n, k, m) not in known]) for n, k in layers)
    return [(Layer(n, k, group_size=GROUP_SIZE), ms) for n, k, ms in left if ms]


def expected_s(layer: Layer, m: int, columns: int, long: bool) -> float:
    """About how long a line takes."""
    if long:
        return columns * LONG_S + _ROW_S
    problem = Problem(layer, m)
    call_us = max(problem.operations / _OPERATIONS, problem.moved_bytes / _BYTES)
    calls = max(2.0, 200e6 / layer.weight_bytes / (2 if m > LARGE_M else 1))
    round_s = 2 * columns * call_us * calls / 1e6  # a GPU rests as long as a long round took
    return _ROW_S + round_s * (1 + _rounds(round_s, columns))


def _rounds(round_s: float, columns: int) -> int:
    return min(max(int(columns * _COLUMN_S / round_s), _ROUNDS[0]), _ROUNDS[-1])


def compare(
    m: int, operands: Operands, contestants: Sequence[Contestant], device: Device
) -> dict[str, Estimate]:
    """The median time of a call of each contestant that is right, all in the same rounds."""
    runners = ready(m, operands, contestants, lambda *its: Runner(GraphTimer(*its)))
    rounds, racing = Rounds(monitor_for(device)), list(runners.values())
    rounds.run(racing)
    begin = time.monotonic()
    samples = [rounds.run(racing)]
    count = _rounds(time.monotonic() - begin, len(racing))
    samples += (rounds.run(racing) for _ in range(count - 1))
    by_runner = zip(*samples, strict=True)
    return {name: median_interval(each) for name, each in zip(runners, by_runner, strict=True)}


def steady(
    m: int, operands: Operands, contestants: Sequence[Contestant], device: Device
) -> Iterator[tuple[str, Estimate, dict[str, float | None]]]:
    """Each contestant for LONG_S on end, in a new order each time, with what the GPU said meanwhile."""
    timers = list(ready(m, operands, contestants, _long_timer).items())
    random.shuffle(timers)
    for name, (timer, calls) in timers:
        yield name, *_run(timer, calls, monitor_for(device), _meter(device))


def _long_timer(
    plan: Any, copies: Sequence[Any], activations: Sequence[Activation]
) -> tuple[GraphTimer, int]:
    """A graph so long that the gap ahead of it is nothing, and its calls."""
    call_us = time_round([GraphTimer(plan, copies, activations)])[0]
    times = max(1, math.ceil(_LONG_GRAPH_US / call_us / len(copies)))
    return GraphTimer(plan, [*copies] * times, activations), len(copies) * times


def _run(
    timer: GraphTimer, calls: int, monitor: Monitor, meter: Callable[[], float | None]
) -> tuple[Estimate, dict[str, float | None]]:
    for until in (_WARM_S, LONG_S - _WARM_S):
        samples, readings, begin, joules = [], [], time.monotonic(), meter()
        while time.monotonic() - begin < until:
            timer.start()
            readings.append(monitor.read())  # while the graph runs
            samples.append(timer.sample_us())
    used = meter()
    spent = None if joules is None or used is None else (used - joules) / calls / len(samples)
    clocks = [each.clock_mhz for each in readings if each.clock_mhz is not None]
    watts = [each.power_w for each in readings if each.power_w is not None]
    said = {"clock_mhz": _median(clocks), "power_w": _median(watts), "joules": spent}
    return median_interval(samples), said


def _median(values: Sequence[float]) -> float | None:
    return median_interval(values).median if values else None


def _meter(device: Device) -> Callable[[], float | None]:
    """Reads the joules that a GPU has used since its driver was loaded; None where NVML does not say."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(device_id(device))
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no package, no library, or a GPU that does not count
        return lambda: None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


def rows(
    work: Sequence[tuple[Layer, list[int]]], options: argparse.Namespace, device: Device, deadline: float
) -> Iterator[dict[str, Any]]:
    """A line for each layer and number of tokens, until the deadline is too near for another."""
    lookup = Lookup(device, options.db)
    columns = 3 + len(options.peers)
    for layer, ms in work:
        if time.monotonic() + _LAYER_S + expected_s(layer, ms[0], columns, options.long) > deadline:
            return
        compile_ahead(layer, ms, lookup)
        operands = Operands.random(layer, device)
        peaks = measure_peaks(device, layer.dtype)
        contestants = entered(operands, lookup, options.peers)
        if options.long:
            contestants = [each for each in contestants if each.name not in _NOT_LONG]
        for m in ms:
            if time.monotonic() + expected_s(layer, m, columns, options.long) > deadline:
                return
            answer = lookup.answer(Problem(layer, m))
            row = {"mode": "long" if options.long else "short", "n": layer.n, "k": layer.k, "m": m}
            row |= {"group_size": layer.group_size, "dtype": layer.dtype, "device": device.name}
            row |= {"source": answer.source, "config": str(answer.config)}
            row |= {"floor_us": _rounded(peaks.floor_us(Problem(layer, m)))}
            if options.long:
                for name, time_us, said in steady(m, operands, contestants, device):
                    row |= {f"{name}_us": _interval(time_us)}
                    row |= {f"{name}_run": {what: value and _rounded(value) for what, value in said.items()}}
            else:
                times = compare(m, operands, contestants, device)
                row |= {f"{name}_us": _interval(time_us) for name, time_us in times.items()}
            yield row
        del contestants, operands
        torch.cuda.empty_cache()


def _interval(estimate: Estimate) -> list[float]:
    return [_rounded(value) for value in (estimate.median, estimate.low, estimate.high)]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def show_plan(work: Sequence[tuple[Layer, list[int]]], options: argparse.Namespace) -> None:
    """What is to do and about how long it takes."""
    columns = 3 + len(options.peers) - (1 if options.long else 0)
    total = 0.0
    for layer, ms in work:
        takes_s = _LAYER_S + sum(expected_s(layer, m, columns, options.long) for m in ms)
        total += takes_s
        print(
            f"{layer.n:>6}x{layer.k:<6} {len(ms):>3} lines, about {takes_s:.0f} s: m={','.join(map(str, ms))}"
        )
    print(f"{sum(len(ms) for _, ms in work)} lines of {columns} columns, about {total:.0f} s")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; what they name must exist."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON Lines; lines that are there are not measured again")
    parser.add_argument("--models", type=_names(MODELS), default=",".join(MODELS), help="of %(default)s")
    parser.add_argument("--m", type=_numbers, help=f"numbers of tokens, else {SHORT}; with --long {LONG}")
    parser.add_argument(
        "--peers", type=_names(FOREIGN), default="humming,vllm", help=f"of {','.join(FOREIGN)}"
    )
    parser.add_argument("--long", action="store_true", help=f"{LONG_S:g} s a column")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds")
    parser.add_argument("--plan", action="store_true", help="say what is to do; no GPU is needed")
    parser.add_argument("--db", help="database to look in")
    options = parser.parse_args(arguments)
    options.m = options.m or _numbers(LONG if options.long else SHORT)
    return options


def _names(known: Any) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return found

    return names


def _numbers(text: str) -> list[int]:
    found = [int(number) for number in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return sorted(set(found))


def _cut_torn_end(path: Path) -> None:
    """Take away a last line that was not written to its end."""
    text = path.read_bytes() if path.exists() else b""
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        path.write_bytes(whole)


def main() -> None:
    """Measure what has no line yet, and append it."""
    begin, options = time.monotonic(), parsed()
    done = read([options.results]) if options.results.exists() else []
    work = todo(options, done)
    if options.plan:
        show_plan(work, options)
        return
    device = find_device("cuda")
    others = {row["device"] for row in done} - {device.name}
    if others:
        sys.exit(f"{options.results} is of {', '.join(others)}, and this is {device.name}; name another file")
    _cut_torn_end(options.results)
    written = 0
    with options.results.open("a", encoding="utf-8") as file:
        for row in rows(work, options, device, begin + options.time_limit):
            file.write(json.dumps(row) + "\n")
            file.flush()
            written += 1
    left = sum(len(ms) for _, ms in work) - written
    print(f"{written} lines written to {options.results}, {left} left" + (": call again" if left else ""))


if __name__ == "__main__":
    main()
