"""The process of one variant of `serving.py`: starts vLLM, checks which kernels run, and measures.

Weights are random: vLLM's own dummy loader leaves int4 words as memory was, often zeros, on which kernels are
faster than on data. Scales are such that every linear keeps the size of what passes through it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
import vllm
from serving_measure import INPUT, Driver, decode_ms, mixed, prefill_ms
from serving_setup import MOST_SEQUENCES, OURS, SEQUENCE, VARIANTS, Job
from vllm import EngineArgs, LLMEngine
from vllm.model_executor.kernels.linear import MPLinearKernel
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

_LOADER = "random"
# Standard deviation of the difference of two numbers from 0 to 15, a weight and its zero.
_NIBBLES = math.sqrt(2 * (16**2 - 1) / 12)
_SAMPLE = 8


@register_model_loader(_LOADER)
class RandomLoader(BaseModelLoader):
    """Fills a model with random weights, the same ones for every kernel."""

    def download_model(self, model_config: Any) -> None:
        """There is nothing to download."""

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:  # noqa: ARG002
        """Give every parameter random values."""
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(0)
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                _fill(name, parameter.data, getattr(module, "input_size_per_partition", 1), generator)


def _fill(name: str, tensor: torch.Tensor, k: int, generator: torch.Generator) -> None:
    if not tensor.is_floating_point():
        tensor.random_(-(2**31), 2**31, generator=generator)
    elif name == "scales":
        tensor.uniform_(0.5, 1.5, generator=generator).div_(_NIBBLES * math.sqrt(k))
    elif tensor.ndim == 1:
        tensor.uniform_(0.5, 1.5, generator=generator)
    else:
        tensor.normal_(std=tensor.shape[-1] ** -0.5, generator=generator)


def start(folder: str, chunk: int, eager: bool, loader: str = _LOADER) -> LLMEngine:
    """An engine in this process, with vLLM's own choices but for what the measurement needs."""
    arguments = EngineArgs(
        model=folder,
        skip_tokenizer_init=True,
        generation_config="vllm",
        load_format=loader,
        dtype="float16",
        max_model_len=2 * SEQUENCE,
        max_num_seqs=MOST_SEQUENCES,
        max_num_batched_tokens=chunk,
        enable_prefix_caching=False,
        enforce_eager=eager,
        disable_log_stats=True,
    )
    return LLMEngine.from_engine_args(arguments)


def kernels_of(model: torch.nn.Module) -> dict[str, int]:
    """How many linears each class of int4 kernels runs, by its name; without a class, by its method's."""
    names: Counter[str] = Counter()
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        kernel = getattr(method, "kernel", None) or getattr(getattr(module, "scheme", None), "kernel", None)
        if isinstance(kernel, MPLinearKernel):
            names[type(kernel).__name__] += 1
        elif hasattr(module, "qweight"):
            names[type(method).__name__] += 1
    return dict(names)


def checked(engine: LLMEngine, variant_name: str, folder: str) -> dict[str, int]:
    """`kernels_of` the engine's model; ends the process when others should run."""
    variant = VARIANTS[variant_name]
    config = json.loads((Path(folder) / "config.json").read_text())
    (kernels,) = engine.apply_model(kernels_of)
    # qkv, o, gate_up and down, as vLLM merges them.
    complaint = variant.complaint(kernels, 4 * config["num_hidden_layers"])
    if complaint and variant.kernel == OURS and not _plugin_installed():
        complaint += "; autotune's entry point vllm.general_plugins is not installed: pip install -e ."
    if complaint:
        raise SystemExit(f"{variant_name}: {complaint}")
    return kernels


def _plugin_installed() -> bool:
    return any(each.module.startswith("autotune.") for each in entry_points(group="vllm.general_plugins"))


def sample(driver: Driver) -> list[int]:
    """The first tokens after a prompt; ends the process when the model gives anything but numbers."""
    driver.submit(driver.prompts("sample", 1, INPUT), _SAMPLE, logprobs=1)
    tokens = []
    for _, outputs in driver.finish():
        for output in outputs.values():
            tokens += output.token_ids
            if not all(math.isfinite(each.logprob) for step in output.logprobs for each in step.values()):
                raise SystemExit("the model's logits are not finite")
    return tokens


class Rows:
    """A file of JSON Lines to which a process adds what it measured, as soon as it has it."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def add(self, kind: str, **values: Any) -> None:
        """Append one line."""
        row = {"run": self._job.run, "turn": self._job.turn, "variant": self._job.variant, "kind": kind}
        # One write, so that a process that is killed leaves no half of a line.
        with open(self._job.file, "ab", buffering=0) as file:
            file.write(json.dumps(row | values).encode() + b"\n")


def measure(job: Job, driver: Driver, rows: Rows) -> None:
    """Decode, prefill, mixed load: those that count most come first, as time may run out."""
    decode_ms(driver, 8, job.steps)  # for the clocks to rise
    for batch in job.batches:
        if time.time() < job.stop_at:
            rows.add("decode", cell=batch, step_ms=decode_ms(driver, batch, job.steps))
    for tokens in job.prefill:
        if time.time() < job.stop_at:
            rows.add("prefill", cell=tokens, ms=prefill_ms(driver, tokens))
    for rate in job.rates:
        measured = mixed(driver, rate, job.mixed_s, job.stop_at)
        if measured:
            rows.add("mixed", cell=rate, **measured)


def main() -> None:
    """Do the job that the first argument has as JSON."""
    job = Job(**json.loads(sys.argv[1]))
    rows, begun = Rows(job), time.perf_counter()
    engine = start(job.folder, job.chunk, job.eager)
    start_s, process_s = time.perf_counter() - begun, time.time() - job.asked_at
    kernels = checked(engine, job.variant, job.folder)
    driver = Driver(engine, json.loads((Path(job.folder) / "config.json").read_text())["vocab_size"])
    rows.add(
        "start",
        cell="first" if job.cold else "again",
        start_s=start_s,
        process_s=process_s,
        kernels=kernels,
        sample=sample(driver),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        vllm=vllm.__version__,
        torch=torch.__version__,
        folder=Path(job.folder).name,
    )
    measure(job, driver, rows)


if __name__ == "__main__":
    main()
