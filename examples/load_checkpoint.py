"""Load an int4 checkpoint as a transformers model with tuned linears, and write some tokens with it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import tiny
import torch

import autotune

with tempfile.TemporaryDirectory() as folder:
    model = autotune.load(tiny.checkpoint(Path(folder) / "tiny-awq"), device="cpu")

print(model.autotune_report)
print(autotune.warmup(model=model, tokens=(1, 8)))

prompt = torch.tensor([[1, 2, 3, 4]])
written = model.generate(
    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, pad_token_id=0
)
print("tokens:", written[0].tolist())
