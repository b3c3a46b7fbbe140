"""`autotune.sweep` on a GPU that this process itself uses, with a graph captured before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runtime_tools import AwqLinear, assert_is_linear, tokens_of, weight_of

import autotune
from autotune.values.layer import Layer

pytestmark = pytest.mark.gpu

LAYER = Layer(n=768, k=512, group_size=64)
TOKENS = (1, 16)


def test_a_loaded_model_runs_the_winners_and_its_graphs_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "mine.db"))
    weight = weight_of(LAYER)
    model = torch.nn.Sequential(AwqLinear(weight)).cuda().eval()
    autotune.apply(model)
    x = tokens_of((16, LAYER.k), torch.float16, device="cuda")
    expected = model(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model(x)

    report = autotune.sweep(model, m=TOKENS, budget="60s", progress=False)

    assert [(each.problem.m, each.status, each.after) for each in report.problems] == [
        (m, "tuned", "exact") for m in TOKENS
    ], str(report)
    for m in TOKENS:
        assert model[0].plans.answer(m).source == "exact"
        assert_is_linear(model(x[:m]).cpu(), weight, x[:m].cpu())
    captured.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected), "the graph runs the kernel that it captured"
