"""What warm-up is worth: the first ten calls of a fresh process, with `autotune.warmup` and without.

    python benchmarks/warmup.py                               on the GPU if there is one
    python benchmarks/warmup.py --device cpu --m 1 --layers 1

A call is every linear of some Llama-7B blocks, waited for. Each sample is a process of its own that makes the
model, applies, warms up or does not, and times ten calls with the host's clock; processes with and without
take turns. Medians over the repetitions, milliseconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import torch
from apply import model_of

import autotune
from autotune.values.device import Device, find_device

CALLS = 10


@dataclass(frozen=True)
class Setting:
    """What one process does."""

    device: str
    layers: int
    m: int
    warm: bool
    idle_s: float


@dataclass(frozen=True)
class Sample:
    """What one process saw: milliseconds of each call, and seconds of the warm-up, 0 without one."""

    calls_ms: list[float]
    warmup_s: float


def sample(setting: Setting) -> Sample:
    """Load, warm up if the setting says so, wait as a server does for its first request, and time calls."""
    warnings.simplefilter("ignore")
    device = find_device(setting.device)
    model = model_of(setting.layers, device.torch_name)
    autotune.apply(model)
    linears = [module for module in model.modules() if isinstance(module, autotune.Int4Linear)]
    # Filled on the host, so that the tokens themselves warm nothing but a copy.
    inputs = {k: torch.full((setting.m, k), 0.01).half() for k in {linear.layer.k for linear in linears}}
    inputs = {k: x.to(device.torch_name) for k, x in inputs.items()}
    warmup_s = 0.0
    if setting.warm:
        started = time.perf_counter()
        autotune.warmup(device.torch_name, model, tokens=[setting.m])
        warmup_s = time.perf_counter() - started
    synchronize(device)
    time.sleep(setting.idle_s)
    calls_ms = []
    with torch.inference_mode():
        for _ in range(CALLS):
            started = time.perf_counter()
            for linear in linears:
                linear(inputs[linear.layer.k])
            synchronize(device)
            calls_ms.append((time.perf_counter() - started) * 1e3)
    return Sample(calls_ms, warmup_s)


def synchronize(device: Device) -> None:
    if device.kind == "cuda":
        torch.cuda.synchronize(device.index)


def in_fresh_process(setting: Setting) -> Sample:
    """`sample` in a process that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(sample, setting).result()


def medians(samples: list[Sample]) -> list[float]:
    """The median of each call over the processes."""
    return [statistics.median(column) for column in zip(*(each.calls_ms for each in samples), strict=True)]


def show(m: int, cold: list[Sample], warm: list[Sample]) -> None:
    took = statistics.median(each.warmup_s for each in warm)
    print(f"m={m}: medians of {len(cold)} processes each; the warm-up took {took:.3f} s")
    print("call  without ms   with ms  ratio")
    for number, (without, with_it) in enumerate(zip(medians(cold), medians(warm), strict=True), start=1):
        print(f"{number:4}  {without:10.3f}  {with_it:8.3f}  {without / with_it:5.2f}")


def main() -> None:
    """Take the samples in turns and print a table for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--layers", type=int, default=4, help="transformer blocks of 7 linears each")
    parser.add_argument("--m", default="1,16,512", help="numbers of tokens of a call, with commas")
    parser.add_argument("--repetitions", type=int, default=7, help="processes of each kind")
    parser.add_argument("--idle", type=float, default=0.5, help="seconds between loading and the first call")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each process instead")
    options = parser.parse_args()
    device = find_device(options.device)
    # One process for nothing: it compiles kernels that no cache holds, and brings files into memory.
    in_fresh_process(Setting(device.torch_name, 1, 1, False, 0.0))
    if not options.json:
        print(f"{device.name}: {7 * options.layers} linears, {options.idle} s idle before the first call")
    for m in map(int, options.m.split(",")):
        samples: dict[bool, list[Sample]] = {False: [], True: []}
        for _ in range(options.repetitions):
            for warm in samples:
                setting = Setting(device.torch_name, options.layers, m, warm, options.idle)
                taken = in_fresh_process(setting)
                samples[warm].append(taken)
                if options.json:
                    print(json.dumps({**asdict(setting), **asdict(taken)}), flush=True)
        if not options.json:
            show(m, samples[False], samples[True])


if __name__ == "__main__":
    main()
