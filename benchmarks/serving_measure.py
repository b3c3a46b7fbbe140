"""What `serving.py` measures in an engine of vLLM that it steps by hand: decode, prefill and a mixed load."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from serving_setup import SEQUENCE
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

INPUT, OUTPUT = 512, 128
_PROMPT = 16
_WARM_STEPS = 8
_PREFILLS = 5


class Driver:
    """An engine, and the tokens that come out of it with the time when they do."""

    def __init__(self, engine: Any, vocabulary: int) -> None:
        self.engine, self.vocabulary, self._count = engine, vocabulary, 0

    def prompts(self, seed: str, count: int, length: int) -> list[list[int]]:
        """Random tokens, the same for every variant and others for each sequence."""
        draw = random.Random(seed)
        return [[draw.randrange(self.vocabulary) for _ in range(length)] for _ in range(count)]

    def submit(self, prompts: Sequence[list[int]], tokens: int, **parameters: Any) -> list[str]:
        """Ask for so many tokens after each prompt, greedily; returns the requests' names."""
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            **parameters,
        )
        names = []
        for prompt in prompts:
            names.append(f"request-{self._count}")
            self._count += 1
            self.engine.add_request(names[-1], {"type": "token", "prompt_token_ids": prompt}, sampling)
        return names

    def step(self) -> tuple[float, dict[str, Any]]:
        """The host's clock after a step, and the new output of each request that has one."""
        outputs = self.engine.step()
        return time.perf_counter(), {each.request_id: each.outputs[0] for each in outputs}

    @property
    def busy(self) -> bool:
        """Whether requests are unfinished."""
        return bool(self.engine.has_unfinished_requests())

    def finish(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """Every step that brings tokens, until all requests are finished."""
        while self.busy:
            stamp, outputs = self.step()
            if outputs:
                yield stamp, outputs


def decode_ms(driver: Driver, batch: int, steps: int) -> list[float]:
    """Milliseconds of each of so many steps in which all `batch` sequences get a token."""
    driver.submit(driver.prompts(f"decode {batch}", batch, _PROMPT), 1 + _WARM_STEPS + steps)
    stamps = [stamp for stamp, outputs in driver.finish() if len(outputs) == batch][_WARM_STEPS:]
    return [(later - earlier) * 1e3 for earlier, later in pairwise(stamps)]


def prefill_ms(driver: Driver, tokens: int) -> list[float]:
    """Milliseconds of prompts of so many tokens together up to the first token of each, several times."""
    lengths = [min(SEQUENCE, tokens - start) for start in range(0, tokens, SEQUENCE)]
    samples = []
    for repetition in range(1 + _PREFILLS):
        for index, length in enumerate(lengths):
            driver.submit(driver.prompts(f"prefill {tokens} {repetition} {index}", 1, length), 1)
        started = stamp = time.perf_counter()
        for stamp, _ in driver.finish():  # noqa: B007
            pass
        samples.append((stamp - started) * 1e3)
    return samples[1:]


def mixed(driver: Driver, rate: float, seconds: float, stop_at: float) -> dict[str, Any] | None:
    """Requests that arrive by a Poisson process of so many a second, or None when time is up before the end.

    Times count from a request's arrival, not from when the engine had time to take it.
    """
    draw, arrivals = random.Random(f"arrivals {rate}"), [0.0]
    while len(arrivals) < max(round(rate * seconds), 2):
        arrivals.append(arrivals[-1] + draw.expovariate(rate))
    prompts = driver.prompts(f"mixed {rate}", len(arrivals), INPUT)
    waiting = deque(zip(arrivals, prompts, strict=True))
    arrived: dict[str, float] = {}
    stamps: dict[str, list[float]] = {}
    begun = time.perf_counter()
    while waiting or driver.busy:
        if time.time() > stop_at:
            return None
        now = time.perf_counter() - begun
        while waiting and waiting[0][0] <= now:
            arrival, prompt = waiting.popleft()
            (name,) = driver.submit([prompt], OUTPUT)
            arrived[name], stamps[name] = arrival, []
        if not driver.busy:
            time.sleep(waiting[0][0] - now)
            continue
        stamp, outputs = driver.step()
        for name in outputs:
            stamps[name].append(stamp - begun)
    last = max(times[-1] for times in stamps.values())
    return {
        "tokens_s": len(arrivals) * OUTPUT / last,
        "first_ms": [(times[0] - arrived[name]) * 1e3 for name, times in stamps.items()],
        "each_ms": [(times[-1] - times[0]) / (OUTPUT - 1) * 1e3 for times in stamps.values()],
    }
