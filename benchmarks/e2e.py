"""A whole model, end to end: a Llama-7B of random weights, quantised to AWQ, run by transformers' own code.

    python benchmarks/e2e.py --json results.jsonl                              on a GPU
    python benchmarks/e2e.py --device cpu --size tiny --layers 1 --rounds 2    the whole script without one

Four variants of one checkpoint: `fp16` (the weights dequantised, torch's matmul), `default` (`autotune.load`,
but as if nothing had been measured), `tuned` (`autotune.load`), `unfused` (the same without fused linears).
Decode feeds each token back into a static cache, prefill ends with the next token; on a GPU both are CUDA
graphs of the model's forward. The logits of all variants are compared before anything is timed. Variants take
turns, in a new order each round; figures are medians with 95 % intervals, and ratios are of the same round.
`--compile` compiles the norms and the rotary embedding, the same for all variants: as transformers has them
they are two dozen small kernels for each layer. At the end, fresh processes load the checkpoint and say what
the time to their first token is made of (first_token.py).
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import first_token
import llama
import torch
from transformers import StaticCache
from transformers.models.llama import modeling_llama

import autotune
from autotune.bench.statistics import Estimate, median_interval, ratio_interval
from autotune.device import Device, find_device
from autotune.errors import AutotuneError
from autotune.runtime.linear import Int4Linear
from autotune.runtime.plans import LayerPlans, plans_for

_CONTEXT = 128
_DECODE_STEPS = 16
_LARGEST_ERROR = 0.05
"""Of the logits, relative to their norm; rounding differs in every linear of every block."""


@dataclass
class Variant:
    """A model, and the plans of its int4 linears: two variants may share a model's weights."""

    name: str
    model: Any
    plans: dict[Int4Linear, LayerPlans]

    def use(self) -> None:
        """Have the model run these plans."""
        for linear, plans in self.plans.items():
            linear.plans = plans


class Run:
    """Forward passes of a variant from one state of its cache: `steps` of them are a sample."""

    def __init__(
        self, variant: Variant, tokens: torch.Tensor, start: int, steps: int, device: Device
    ) -> None:
        self._variant, self._device = variant, device
        self._start, self._steps = start, steps
        self._tokens, self._ids = tokens, tokens.clone()
        # A multiple of 64, because attention is slow with a mask of an odd width.
        self._length = -(-(start + steps * tokens.shape[1]) // 64) * 64
        self._cache = StaticCache(config=variant.model.config, max_cache_len=self._length)
        variant.use()
        # The cache is made by the first call.
        self._forward(torch.zeros_like(tokens[:, :1]).expand(-1, max(start, 1)))
        self._rewind()
        self.logits = self._forward(self._ids).float()
        self._rewind()
        self._call = self._step if device.kind == "cpu" else self._captured()

    def first_logits(self) -> torch.Tensor:
        """Those of the first timed pass."""
        self._rewind()
        self._variant.use()
        self._call()
        return self._latest.float()

    def sample_s(self) -> float:
        """Seconds of all steps."""
        self._rewind()
        self._variant.use()
        synchronize(self._device)
        started = time.perf_counter()
        for _ in range(self._steps):
            self._call()
        synchronize(self._device)
        return time.perf_counter() - started

    def _captured(self) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    def _step(self) -> None:
        self._latest = self._forward(self._ids)
        if self._ids.shape[1] == 1:
            self._ids.copy_(self._latest.argmax(-1, keepdim=True))

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        seen, columns = self._cache.get_seq_length(), torch.arange(self._length, device=ids.device)
        rows = torch.arange(ids.shape[1], device=ids.device) + seen
        output = self._variant.model(
            input_ids=ids,
            # Given, because without one a pass of one token would attend to the empty part of the cache.
            attention_mask=(columns <= rows[:, None])[None, None],
            position_ids=rows[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _rewind(self) -> None:
        self._ids.copy_(self._tokens)
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._start)


@dataclass(frozen=True)
class Case:
    """What is timed: `batch` sequences, of which each pass takes `tokens` tokens."""

    name: str
    batch: int
    tokens: int
    start: int
    steps: int

    @classmethod
    def decode(cls, batch: int) -> Case:
        return cls(f"decode, batch {batch}", batch, 1, _CONTEXT, _DECODE_STEPS)

    @classmethod
    def prefill(cls, tokens: int) -> Case:
        return cls(f"prefill, {tokens} tokens", 1, tokens, 0, 1)

    def run(self, variant: Variant, device: Device) -> Run:
        generator = torch.Generator(device.torch_name).manual_seed(1)
        highest, place = variant.model.config.vocab_size, device.torch_name
        tokens = torch.randint(highest, (self.batch, self.tokens), generator=generator, device=place)
        return Run(variant, tokens, self.start, self.steps, device)

    def rate(self, seconds: float) -> float:
        """Tokens a second."""
        return self.batch * self.tokens * self.steps / seconds


def synchronize(device: Device) -> None:
    if device.kind == "cuda":
        torch.cuda.synchronize(device.index)


def variants(folder: Path, device: Device, db: str | None) -> list[Variant]:
    """All of them, with a line for what each load took."""
    place = device.torch_name
    found = [Variant("fp16", _loaded("fp16", device, lambda: llama.dense(folder, place)), {})]
    for name, fuse in (("tuned", True), ("unfused", False)):
        model = _loaded(name, device, lambda fuse=fuse: autotune.load(folder, place, db=db, fuse=fuse))
        linears = [module for module in model.modules() if isinstance(module, Int4Linear)]
        if fuse:
            untuned = llama.Untuned(device, db)
            plans = {linear: plans_for(linear.layer, untuned) for linear in linears}
            found.append(Variant("default", model, plans))
            print(model.autotune_report)
        found.append(Variant(name, model, {linear: linear.plans for linear in linears}))
    return found


def _loaded(name: str, device: Device, load: Callable[[], Any]) -> Any:
    before, started = 0, time.perf_counter()
    if device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device.index)
        before = torch.cuda.memory_allocated(device.index)
    model = load()
    synchronize(device)
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    mib = sum(tensor.nbytes for tensor in tensors.values()) / 2**20
    line = f"{name}: {mib:.0f} MiB of weights, loaded in {time.perf_counter() - started:.2f} s"
    if device.kind == "cuda":
        peak = (torch.cuda.max_memory_allocated(device.index) - before) / 2**20
        line += f", {peak:.0f} MiB of the GPU at its peak"
    print(line, flush=True)
    return model


def measure(case: Case, found: list[Variant], device: Device, rounds: int) -> dict[str, Any]:
    """Seconds of a sample of every variant in each round, and the largest error of its logits."""
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
    print(f"\n{case.name}: tokens/s, times fp16, times default, error of the logits")
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


def fresh_processes(folder: Path, device: Device, db: str | None, count: int) -> list[dict[str, float]]:
    """What `first_token` says in each of some processes."""
    command = [sys.executable, first_token.__file__, str(folder), "--device", device.torch_name]
    command += ["--db", db] if db else []
    taken = []
    for _ in range(count):
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
        print(f"  {part:<16} {statistics.median(values):8.3f}  ({min(values):.3f} to {max(values):.3f})")


def compile_small_parts() -> None:
    """Each becomes one kernel for each shape that it meets."""
    torch._dynamo.config.recompile_limit = 64
    compiled = torch.compile(modeling_llama.LlamaRMSNorm.forward, dynamic=False)
    modeling_llama.LlamaRMSNorm.forward = compiled
    modeling_llama.apply_rotary_pos_emb = torch.compile(modeling_llama.apply_rotary_pos_emb, dynamic=False)


class Journal:
    """The file of what was measured, written as it comes."""

    def __init__(self, path: str | None, always: dict[str, Any]) -> None:
        self._file = open(path, "w", encoding="utf-8") if path else None  # noqa: SIM115
        self._always = always

    def add(self, line: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(self._always | line) + "\n")
            self._file.flush()


def measured_well(case: Case, found: list[Variant], device: Device, rounds: int, journal: Journal) -> bool:
    """Measure and show one case; one that fails leaves the others their turn."""
    try:
        measured = measure(case, found, device, rounds)
    except (AutotuneError, RuntimeError) as error:
        print(f"\n{case.name} failed: {error}", file=sys.stderr)
        return False
    finally:
        # Caches and graphs are parts of cycles, and are to go before the next case.
        gc.collect()
    journal.add(measured)
    show(case, measured)
    return max(measured["errors"].values()) <= _LARGEST_ERROR


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--size", default="7b", choices=llama.SIZES)
    parser.add_argument("--layers", type=int, default=32, help="blocks of the model")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32], help="sequences that are decoded")
    parser.add_argument("--prompts", type=numbers, default=[512, 2048], help="tokens that are prefilled")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--starts", type=int, default=3, help="fresh processes, 0 for none")
    parser.add_argument("--compile", action="store_true", help="compile the norms and the rotary embedding")
    parser.add_argument("--db", default=None, help="database to look in")
    parser.add_argument("--json", default=None, help="a file for what was measured, a line per case")
    return parser.parse_args()


def main() -> None:
    """Measure every case, then the fresh processes; exit 1 when some logits were wrong."""
    options = options_of()
    warnings.simplefilter("ignore")
    device = find_device(options.device)
    began = time.perf_counter()
    if options.compile:
        compile_small_parts()
    journal = Journal(
        options.json, {"device": device.name, "layers": options.layers, "compile": options.compile}
    )
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        llama.write(folder, options.size, options.layers, device)
        print(f"{device.name}, Llama {options.size} of {options.layers} blocks, torch {torch.__version__}")
        found = variants(folder, device, options.db)
        cases = [*map(Case.decode, options.batches), *map(Case.prefill, options.prompts)]
        wrong = [
            case.name for case in cases if not measured_well(case, found, device, options.rounds, journal)
        ]
        if options.starts:
            taken = fresh_processes(folder, device, options.db, options.starts)
            journal.add({"case": "first token", "starts": taken})
            show_starts(taken)
    print(f"\nin all {time.perf_counter() - began:.0f} s")
    if wrong:
        sys.exit(f"failed, or with logits further than {_LARGEST_ERROR} from fp16's: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
