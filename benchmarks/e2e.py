"""A whole model, end to end: a Llama-7B of random weights, quantised to AWQ, run by transformers' own code.

    python benchmarks/e2e.py --json results.jsonl                              on a GPU
    python benchmarks/e2e.py --device cpu --size tiny --layers 1 --rounds 2    the whole script without one

Three variants of one checkpoint: `fp16` (the weights dequantised, torch's matmul), `default`
(`autotune.load`, but as if nothing had been measured) and `tuned` (`autotune.load`); `--unfused` adds the
last one without fused linears. Each load says its peak of the GPU's memory beside what the weights take.
Decode feeds each token back into a static cache, prefill ends with the next token; on a GPU both are CUDA
graphs of the model's forward (generation.py). The logits of all variants are compared before anything is
timed. Variants take turns, in a new order each round; figures are medians with 95 % intervals, and ratios are
of the same round. Then batches are decoded again with compiled blocks (compiled.py), the same for all
variants: between the linears of a block transformers runs some 36 small kernels, which no kernel of ours can
make faster; compiled, as in a server, they are seven. At the end, fresh processes load the checkpoint and say
what the time to their first token is made of (first_token.py). The checkpoint is written to the folder for
temporary files; TMPDIR=/dev/shm keeps it in memory. Without a GPU, `--compiled 1` saves minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import first_token
import llama
import torch
import transformers
from compiled import compile_blocks
from generation import Case, Choice, Variant, synchronize

import autotune
from autotune.bench.statistics import Estimate, median_interval, ratio_interval
from autotune.runtime.linear import Int4Linear
from autotune.runtime.plans import LayerPlans
from autotune.values.device import Device, find_device
from autotune.values.errors import AutotuneError

_LARGEST_ERROR = 0.05
"""Of the logits, relative to their norm; rounding differs in every linear of every block."""
_LARGEST_PEAK = 1.15
"""Of the memory that a load of packed weights takes, relative to the weights."""
_FEWEST_ROUNDS = 6
"""What a 95 % interval needs."""
_START_S = 14
"""About what a fresh process takes."""


class Journal:
    """The file of what was measured, written as it comes."""

    def __init__(self, path: str | None, always: dict[str, Any]) -> None:
        self._file = open(path, "w", encoding="utf-8") if path else None  # noqa: SIM115
        self._always = always

    def add(self, line: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(self._always | line) + "\n")
            self._file.flush()


class Loads:
    """Makes the variants, with a line for what each load took."""

    def __init__(self, folder: Path, device: Device, db: str | None, journal: Journal) -> None:
        self._folder, self._device, self._db, self._journal = folder, device, db, journal
        self.failed: list[str] = []

    def variants(self, unfused: bool) -> list[Variant]:
        place = self._device.torch_name
        found = [Variant("fp16", self._loaded("fp16", lambda: llama.dense(self._folder, place)), {})]
        made: dict[LayerPlans, Choice] = {}
        for name, fuse in (("tuned", True), ("unfused", False))[: 1 + unfused]:
            model = self._loaded(
                name, lambda fuse=fuse: autotune.load(self._folder, place, db=self._db, fuse=fuse)
            )
            linears = [module for module in model.modules() if isinstance(module, Int4Linear)]
            untuned = llama.Untuned(self._device, self._db)
            tuned = {linear.plans for linear in linears}
            # One for both models, because choices of one layer have one handle.
            made |= {plans: Choice(plans.layer, untuned) for plans in tuned - made.keys()}
            choices = {plans: made[plans] for plans in tuned}
            for linear in linears:
                linear.plans = choices[linear.plans]
            if fuse:
                found.append(Variant("default", model, dict.fromkeys(choices.values())))
                print(model.autotune_report)
            found.append(Variant(name, model, {choice: plans for plans, choice in choices.items()}))
        return found

    def _loaded(self, name: str, load: Callable[[], Any]) -> Any:
        gpu = self._device.index if self._device.kind == "cuda" else None
        if gpu is not None:
            torch.cuda.reset_peak_memory_stats(gpu)
        before, started = 0 if gpu is None else torch.cuda.memory_allocated(gpu), time.perf_counter()
        model = load()
        synchronize(self._device)
        seconds = time.perf_counter() - started
        tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
        held = sum(tensor.nbytes for tensor in tensors.values())
        line = f"{name}: {held / 2**20:.0f} MiB of weights, loaded in {seconds:.2f} s"
        loaded = {"case": "load", "name": name, "seconds": seconds, "weight_bytes": held}
        if gpu is not None:
            peak = torch.cuda.max_memory_allocated(gpu) - before
            loaded["peak_bytes"] = peak
            line += f", {peak / 2**20:.0f} MiB of the GPU at its peak: {peak / held:.3f} times the weights"
            if name != "fp16" and peak > _LARGEST_PEAK * held:
                line += "  TOO MUCH"
                self.failed.append(f"load of {name}")
        self._journal.add(loaded)
        print(line, flush=True)
        return model


def measure(case: Case, found: list[Variant], device: Device, rounds: int, until: float) -> dict[str, Any]:
    """Seconds of a sample of every variant in each round, and the largest error of its logits.

    Once the clock is at `until`, no round is begun that an interval does not need.
    """
    runs = {variant.name: case.run(variant, device) for variant in found}
    reference = runs["fp16"].first_logits()
    errors = {}
    for name, run in runs.items():
        logits = run.first_logits()
        # Of what is timed: beside the other variants', and beside the same pass without a graph.
        errors[name] = max(_error(logits, reference), _error(logits, run.logits))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for number in range(rounds + 1):
        if number > _FEWEST_ROUNDS and time.perf_counter() > until:
            break
        random.Random(number).shuffle(order)
        for name in order:
            seconds = runs[name].sample_s()
            if number:
                samples[name].append(seconds)
    return {"case": case.name, "seconds": samples, "errors": errors}


def _error(logits: torch.Tensor, reference: torch.Tensor) -> float:
    return float((logits - reference).norm() / reference.norm())


def show(case: Case, measured: dict[str, Any]) -> None:
    """Tokens a second, and how many times as many as fp16 and as our defaults."""
    seconds = measured["seconds"]
    rounds = len(seconds["fp16"])
    print(f"\n{case.name}: tokens/s, times fp16, times default, error of the logits ({rounds} rounds)")
    for name, taken in seconds.items():
        rates = median_interval([case.rate(each) for each in taken])
        ratios = [ratio_interval(seconds[other], taken) for other in ("fp16", "default")]
        wrong = "" if measured["errors"][name] <= _LARGEST_ERROR else "  WRONG"
        cells = (_cell(each, 3) for each in ratios)
        print(
            f"  {name:<8} {_cell(rates, 0)}  {'  '.join(cells)}  {measured['errors'][name]:.4f}{wrong}",
            flush=True,
        )


def _cell(estimate: Estimate, digits: int) -> str:
    low, high = f"{estimate.low:.{digits}f}", f"{estimate.high:.{digits}f}"
    return f"{estimate.median:9.{digits}f} {f'({low} to {high})':<18}"


def fresh_processes(
    folder: Path, device: Device, db: str | None, count: int, until: float
) -> list[dict[str, float]]:
    """What `first_token` says in each of some processes; at `until` only the first is begun."""
    command = [sys.executable, first_token.__file__, str(folder), "--device", device.torch_name]
    command += ["--db", db] if db else []
    taken = []
    for number in range(count):
        if number and time.perf_counter() > until:
            break
        started = ["--started", str(time.time())]
        done = subprocess.run([*command, *started], stdout=subprocess.PIPE, check=True, text=True)
        taken.append(json.loads(done.stdout.splitlines()[-1]))
    return taken


def show_starts(taken: list[dict[str, float]]) -> None:
    print(
        f"\nfrom process start to the first token: medians of {len(taken)} processes, and their range, in s"
    )
    for part in taken[0]:
        values = [each[part] for each in taken]
        print(f"  {part:<20} {statistics.median(values):8.3f}  ({min(values):.3f} to {max(values):.3f})")


class Cases:
    """Measures cases one by one, and keeps the names of those that are wrong."""

    def __init__(
        self, found: list[Variant], device: Device, rounds: int, until: float, journal: Journal
    ) -> None:
        self._found, self._device, self._journal = found, device, journal
        self._rounds, self._until = rounds, until
        self.failed: list[str] = []

    def measure(self, case: Case) -> None:
        """Measure and show it; one that fails leaves the others their turn."""
        try:
            measured = measure(case, self._found, self._device, self._rounds, self._until)
        except (AutotuneError, RuntimeError) as error:
            print(f"\n{case.name} failed: {error}", file=sys.stderr)
            self.failed.append(case.name)
            return
        finally:
            # Caches and graphs are parts of cycles, and are to go before the next case.
            gc.collect()
        self._journal.add(measured)
        show(case, measured)
        if max(measured["errors"].values()) > _LARGEST_ERROR:
            self.failed.append(case.name)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--size", default="7b", choices=llama.SIZES)
    parser.add_argument("--layers", type=int, default=32, help="blocks of the model")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32], help="sequences that are decoded")
    parser.add_argument("--prompts", type=numbers, default=[512, 2048], help="tokens that are prefilled")
    parser.add_argument(
        "--compiled", type=numbers, default=[1, 8, 32], help="batches that are decoded compiled too"
    )
    parser.add_argument("--unfused", action="store_true", help="measure the tuned model without fusion too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--starts", type=int, default=2, help="fresh processes, 0 for none")
    parser.add_argument(
        "--limit", type=float, default=95, help="seconds after which no more rounds and processes are begun"
    )
    parser.add_argument("--db", default=None, help="database to look in")
    parser.add_argument("--json", default=None, help="a file for what was measured, a line per case")
    return parser.parse_args()


def main() -> None:
    """Measure every case, then the fresh processes; exit 1 when some logits were wrong or memory too much."""
    options, began = options_of(), time.perf_counter()
    end = began + options.limit
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    device = find_device(options.device)
    journal = Journal(options.json, {"device": device.name, "size": options.size, "layers": options.layers})
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        llama.write(folder, options.size, options.layers, device)
        print(
            f"{device.name}, Llama {options.size} of {options.layers} blocks, torch {torch.__version__};"
            f" checkpoint written in {time.perf_counter() - began:.1f} s",
            flush=True,
        )
        loads = Loads(folder, device, options.db, journal)
        found = loads.variants(options.unfused)
        cases = Cases(found, device, options.rounds, end - _START_S * options.starts, journal)
        for case in (*map(Case.decode, options.batches), *map(Case.prefill, options.prompts)):
            cases.measure(case)
        if options.compiled:
            for model in {variant.model for variant in found}:
                compile_blocks(model)
        for batch in options.compiled:
            cases.measure(replace(Case.decode(batch), name=f"decode, batch {batch}, compiled"))
        if options.starts:
            taken = fresh_processes(folder, device, options.db, options.starts, end - _START_S)
            journal.add({"case": "first token", "starts": taken})
            show_starts(taken)
    print(f"\nin all {time.perf_counter() - began:.0f} s")
    failed = loads.failed + cases.failed
    if failed:
        sys.exit(
            f"failed, or logits further than {_LARGEST_ERROR} from fp16's,"
            f" or memory above {_LARGEST_PEAK} times the weights: {', '.join(failed)}"
        )


if __name__ == "__main__":
    main()
