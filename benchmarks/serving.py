"""Tokens per second of vLLM with our kernels, tuned and not, with its own, and without quantization.

    python benchmarks/serving.py --out FOLDER --db swept.db                 on a GPU, Llama-3-8B
    python benchmarks/serving.py --out FOLDER --model qwen3-32b --repeats 1
    python benchmarks/serving.py --out FOLDER --text                        do they write the same?
    python benchmarks/serving.py --out FOLDER --device cpu --model tiny     without a GPU

Each variant runs in a process of its own, and the variants take turns. A process starts vLLM with random
weights, fails when other kernels run than its variant's, and measures decode, prefill, and a mixed load whose
requests arrive by a Poisson process. What it has measured is in FOLDER/measurements.jsonl at once, its log in
FOLDER/logs; at the end FOLDER/report.md has the medians of the processes' medians with their range, and ours
against the others within each turn. `serving_report.py` makes one report of several runs.

`tuned` looks in --db, which `autotune sweep` has filled, and `untuned` in no database of the user's; `vllm`
is whatever vLLM picks. A variant's first process compiles; the start that counts is that of the further ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import serving_report
import serving_text
from serving_process import environment, run
from serving_setup import MODELS, MOST_SEQUENCES, VARIANTS, Job

_BATCHES = "1,2,4,8,16,24,32,40,64,100,128,200,256"
_PREFILL = "256,512,1024,2048,4096,8192,16384"
_DEFAULT_VARIANTS = {"cuda": "tuned,untuned,machete,marlin,fp16", "cpu": "untuned,fp16"}


def take_turns(options: argparse.Namespace, cache: Path, stop_at: float) -> bool:
    """Run every process that there is time for; whether all did what they should."""
    model = MODELS[options.model].with_config(num_hidden_layers=options.layers, vocab_size=options.vocab)
    started_run = time.strftime("%Y-%m-%dT%H-%M-%S")
    failed: set[str] = set()
    for turn, name in itertools.product(range(options.repeats), options.variants):
        if name in failed or time.time() >= stop_at:
            continue
        kind = "awq" if VARIANTS[name].quantized else "fp16"
        job = Job(
            run=started_run,
            turn=turn,
            variant=name,
            cold=not (cache / name).exists(),
            file=str(options.out.resolve() / "measurements.jsonl"),
            folder=str(model.write(cache / f"{options.model}-{kind}", VARIANTS[name].quantized)),
            chunk=model.chunk,
            eager=options.eager,
            batches=options.batches,
            prefill=options.prefill,
            rates=model.rates if options.rates is None else options.rates,
            mixed_s=options.mixed_s,
            steps=options.steps,
            stop_at=stop_at,
            asked_at=time.time(),
        )
        environ = environment(name, options.device, cache, options.db)
        log = options.out / "logs" / f"{started_run}-{turn}-{name}.log"
        if run("serving_engine.py", [json.dumps(asdict(job))], environ, log, stop_at):
            failed.add(name)
    return not failed


def compare_text(options: argparse.Namespace, cache: Path, stop_at: float) -> bool:
    """Print how far the variants write the same; whether ours differ from others in near ties only."""
    size, chunk = ("tiny", 2048) if options.device == "cpu" else ("7b", 16384)
    folders = serving_text.write_models(cache, size, options.layers or 4, options.device)
    written = {}
    for name in options.variants:
        folder = str(folders[VARIANTS[name].quantized])
        file, log = options.out / f"text-{name}.json", options.out / "logs" / f"text-{name}.log"
        mode = "eager" if options.eager else "compiled"
        environ = environment(name, options.device, cache, options.db)
        arguments = [folder, name, str(chunk), mode, str(file)]
        if run("serving_text.py", arguments, environ, log, stop_at) is None and file.exists():
            written[name] = json.loads(file.read_text())
    counts = serving_text.compare_all(written, options.tolerance)
    print(json.dumps(counts) if options.json else serving_text.markdown(counts, options.tolerance))
    different = any(each["different"] for each in counts if each["ours"])
    return set(written) == set(options.variants) and not different


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between; whole ones as int."""
    return tuple(float(each) if "." in each else int(each) for each in text.split(",") if each)


def variants(text: str) -> tuple[str, ...]:
    """Names of variants with commas between."""
    names = tuple(text.split(","))
    for name in names:
        if name not in VARIANTS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(VARIANTS)}")
    return names


def parse() -> argparse.Namespace:
    """What to run, from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for what is measured; a further run adds to it")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--model", choices=MODELS, default="llama3-8b")
    add("--layers", type=int, help="blocks, instead of the model's own number")
    add("--vocab", type=int, help="size of the vocabulary, instead of the model's own")
    add("--variants", type=variants, help=f"those of {','.join(VARIANTS)} that run, in this order")
    add("--repeats", type=int, default=3, help="processes of each variant (default %(default)s)")
    add("--db", help="database of `tuned`, filled by `autotune sweep`")
    add("--batches", type=numbers, default=_BATCHES, help="of decode (default %(default)s; empty: none)")
    add("--prefill", type=numbers, default=_PREFILL, help="tokens (default %(default)s; empty: none)")
    add("--rates", type=numbers, help="requests a second (default: the model's; empty: no mixed load)")
    add("--mixed-s", type=float, default=4.0, help="seconds of arrivals at each rate (default %(default)s)")
    add("--steps", type=int, default=64, help="timed steps of each batch (default %(default)s)")
    add("--eager", action="store_true", help="no compilation and no graphs")
    add("--cache", type=Path, help="folder for compiled graphs, to be used again (default: a temporary one)")
    add("--time-limit", type=float, default=1e6, help="seconds after which to report what there is")
    add("--text", action="store_true", help="compare what the variants write instead")
    add("--tolerance", type=float, default=0.05, help="of --text, in log probability (default %(default)s)")
    add("--json", action="store_true", help="print one JSON document instead of tables")
    options = parser.parse_args()
    options.variants = options.variants or variants(_DEFAULT_VARIANTS[options.device])
    if max(options.batches, default=0) > MOST_SEQUENCES:
        parser.error(f"--batches: {max(options.batches)} is more than {MOST_SEQUENCES}, the engine's most")
    return options


def main() -> int:
    """Run, and write the report."""
    options = parse()
    stop_at = time.time() + options.time_limit
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        cache = (options.cache or Path(temporary)).resolve()
        if options.text:
            return 0 if compare_text(options, cache, stop_at) else 1
        right = take_turns(options, cache, stop_at)
    file = options.out / "measurements.jsonl"
    rows = serving_report.read([file] if file.exists() else [])
    tables = serving_report.markdown(rows)
    (options.out / "report.md").write_text(tables, encoding="utf-8")
    print(json.dumps(serving_report.summary(rows)) if options.json else tables)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
