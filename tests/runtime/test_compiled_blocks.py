"""The blocks that a benchmark compiles do what transformers' own do, whatever it calls their arguments."""

from __future__ import annotations

import pytest
import torch
from places import BENCHMARKS
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache


def logits(model: LlamaForCausalLM, config: LlamaConfig) -> torch.Tensor:
    """Of a prompt, and of a token after it that reads the prompt's keys and values."""
    cache = StaticCache(config=config, max_cache_len=8)
    passes = [torch.tensor([[5, 17, 3]]), torch.tensor([[9]])]
    return torch.cat([model(tokens, past_key_values=cache).logits for tokens in passes], 1)


def test_compiled_blocks_compute_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from compiled import compile_blocks

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=5, hidden_size=32, intermediate_size=64, num_attention_heads=2, vocab_size=64
    )
    model = LlamaForCausalLM(config)
    # What a compiler makes of them is not in question, and takes it a minute. The patch takes back at its end
    # what is set inside.
    with (
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        torch._dynamo.config.patch(recompile_limit=8),
    ):
        expected = logits(model, config)
        compile_blocks(model)
        assert len(model.model.layers) == 2
        torch.testing.assert_close(logits(model, config), expected)
