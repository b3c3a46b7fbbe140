"""Passes of a Llama in transformers from a state of its cache: decode and prefill, as graphs on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import StaticCache

from autotune.runtime.plans import LayerPlans
from autotune.values.device import Device

if TYPE_CHECKING:
    from autotune.families.protocol import Plan

_CONTEXT = 128
_DECODE_STEPS = 16


class Choice(LayerPlans):
    """The plans of a layer by this Lookup, or others in their place: what was compiled for one runs both."""

    chosen: LayerPlans | None = None

    def plan(self, m: int) -> Plan:
        """The plan for m >= 1 tokens, of those that are chosen."""
        return self.chosen.plan(m) if self.chosen else super().plan(m)


@dataclass
class Variant:
    """A model, and what its choices are: two variants may share a model's weights."""

    name: str
    model: Any
    plans: dict[Choice, LayerPlans | None]

    def use(self) -> None:
        """Have the model run these plans."""
        for choice, plans in self.plans.items():
            choice.chosen = plans


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
        # Of numbers, because torch makes numbers of booleans in every block.
        hidden = torch.full((self._length, self._length), -torch.inf, device=tokens.device)
        self._masks = hidden.triu(1).to(variant.model.dtype)
        variant.use()
        # The cache is made by the first call, whose shape is met once; the second one says what is right.
        with torch.compiler.set_stance("force_eager"):
            self._forward(torch.zeros_like(tokens[:, :1]).expand(-1, max(start, 1)))
            self._rewind()
            self.logits = self._forward(self._ids).float()
        self._rewind()
        self._step()
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
        rows = torch.arange(ids.shape[1], device=ids.device) + self._cache.get_seq_length()
        output = self._variant.model(
            input_ids=ids,
            # Given, because without one a pass of one token would attend to the empty part of the cache.
            attention_mask=self._masks.index_select(0, rows)[None, None],
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
