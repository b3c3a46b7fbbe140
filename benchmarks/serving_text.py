"""Whether our kernels and vLLM's own write the same text: part of `serving.py --text`.

A small Llama of random weights is stored as AWQ, and once more dequantised. Each variant continues the same
random prompts greedily. Where two differ, what follows differs too, so a sequence is compared up to there. A
difference counts only where the two tokens were no near tie, but further apart in log probability than the
tolerance.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from serving_setup import OURS, VARIANTS

BATCHES = (1, 8, 64)
_LENGTH, _TOKENS, _TOP = 24, 32, 5


def write_models(folder: Path, size: str, layers: int, device: str) -> dict[bool, Path]:
    """The folders of the quantized model (True) and of the dense one with the same weights (False)."""
    import llama

    from autotune.values.device import find_device

    quantized, dense = folder / "text-awq", folder / "text-fp16"
    quantized.mkdir(parents=True, exist_ok=True)
    llama.write(quantized, size, layers, find_device(device))
    llama.dense(quantized, device).save_pretrained(dense)
    return {True: quantized, False: dense}


def continuations(folder: str, variant: str, chunk: int, eager: bool) -> list[dict[str, Any]]:
    """Of each sequence its batch, its tokens, and at each the log probabilities of the likeliest ones."""
    from serving_engine import checked, start
    from serving_measure import Driver

    engine = start(folder, chunk, eager, loader="auto")
    checked(engine, variant, folder)
    driver = Driver(engine, engine.model_config.get_vocab_size())
    sequences = []
    for batch in BATCHES:
        names = driver.submit(driver.prompts(f"text {batch}", batch, _LENGTH), _TOKENS, logprobs=_TOP)
        steps: dict[str, list[Any]] = {name: [] for name in names}
        for _, outputs in driver.finish():
            for name, output in outputs.items():
                steps[name] += zip(output.token_ids, output.logprobs, strict=True)
        for name in names:
            tops = [{str(token): each.logprob for token, each in top.items()} for _, top in steps[name]]
            sequences.append({"batch": batch, "tokens": [token for token, _ in steps[name]], "top": tops})
    return sequences


def compare(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], tolerance: float
) -> list[dict[str, Any]]:
    """By batch: same tokens, near ties, different tokens, and how far log probabilities differ at most."""
    counts = {batch: {"same": 0, "near ties": 0, "different": 0, "largest": 0.0} for batch in BATCHES}
    for mine, other in zip(ours, theirs, strict=True):
        count = counts[mine["batch"]]
        for step, token in enumerate(mine["tokens"]):
            top, expected = other["top"][step], other["tokens"][step]
            if token != expected:
                gap = top[str(expected)] - top.get(str(token), -float("inf"))
                count["near ties" if gap <= tolerance else "different"] += 1
                break
            count["same"] += 1
            off = abs(mine["top"][step][str(token)] - top[str(token)])
            count["largest"] = max(count["largest"], off)
    return [{"batch": batch, **count} for batch, count in counts.items()]


def compare_all(written: dict[str, list[dict[str, Any]]], tolerance: float) -> list[dict[str, Any]]:
    """`compare` of every two variants; `ours` where one of the two runs our kernels."""
    return [
        {"pair": f"{one}, {other}", "ours": OURS in (VARIANTS[one].kernel, VARIANTS[other].kernel), **count}
        for one, other in combinations(written, 2)
        for count in compare(written[one], written[other], tolerance)
    ]


def markdown(counts: Sequence[dict[str, Any]], tolerance: float) -> str:
    """A line for each two variants and batch."""
    head = f"same | near ties (up to {tolerance:g}) | different | largest difference of a log probability |"
    lines = [f"| tokens | batch | {head}", "|---" * 6 + "|"]
    for each in counts:
        numbers = f"{each['same']} | {each['near ties']} | {each['different']} | {each['largest']:.4f}"
        lines.append(f"| {each['pair']} | {each['batch']} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """The process of one variant: FILE gets what it wrote."""
    folder, variant, chunk, eager, file = sys.argv[1:]
    Path(file).write_text(json.dumps(continuations(folder, variant, int(chunk), eager == "eager")))


if __name__ == "__main__":
    main()
