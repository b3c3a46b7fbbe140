"""A Triton kernel as a family on a GPU, and what cannot be captured in a graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from places import BENCHMARKS
from runtime_tools import assert_is_linear, tokens_of, weight_of

import autotune
from autotune.bench.measure import measure
from autotune.bench.operands import Operands
from autotune.executors.kernel import KernelExecutor
from autotune.layouts import dequantize
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.search.sweep import sweep
from autotune.store.store import Store
from autotune.values.device import Device, find_device
from autotune.values.layer import Layer, Problem

pytestmark = pytest.mark.gpu
EXAMPLE = BENCHMARKS / "own_kernel.py"
LAYER = Layer(1024, 2048)


@pytest.fixture(scope="module")
def device() -> Device:
    return find_device("cuda")


@autotune.kernel(space={})
def waiting(x, weight, out):
    out.copy_(x.float() @ dequantize(weight).T)
    torch.cuda.synchronize()


def assert_memory_of_two_streams_is_freed(device):
    def active():
        return torch.cuda.memory_stats(device.index)["active_bytes.all.current"]

    before = active()
    used = torch.empty(1 << 20, dtype=torch.uint8, device=device.torch_name)
    used.record_stream(torch.cuda.Stream(device.torch_name))
    del used
    torch.cuda.synchronize()
    torch.empty(1, device=device.torch_name)  # looks for memory that has become free
    assert active() == before


def test_a_triton_kernel_is_tuned_and_applied(device, tmp_path):
    pytest.importorskip("triton")
    db = str(tmp_path / "here.db")
    layers = LAYER, replace(LAYER, dtype="bf16")
    problems = [Problem(layers[0], 1), Problem(layers[0], 64), Problem(layers[1], 1)]
    with Store.open(db) as store, KernelExecutor(device, f"{EXAMPLE}:triton_gemm") as executor:
        kernel = executor.kernel
        outcomes = list(sweep(problems, store, [executor]))
        trials = store.trials(problems[0], device)
    assert [outcome.failed for outcome in outcomes] == [0] * len(problems)
    assert not any(outcome.note for outcome in outcomes), "this process may hold the GPU, and is nobody else"
    evidence = [outcome.record.evidence for outcome in outcomes]
    assert all(each.clock_mhz and each.temperature_c and each.power_w for each in evidence)
    assert {trial.config for trial in trials} == set(kernel.space(problems[0], device))
    for outcome in outcomes:
        answer = kernel.best(outcome.problem.layer, outcome.problem.m, db=db)
        assert (answer.source, answer.config) == ("exact", outcome.record.config)

    for layer in layers:
        weight = weight_of(layer, device=device.torch_name)
        linear = kernel.linear(weight, lookup=kernel.lookup(db=db))
        for m in (1, 50):
            x = tokens_of((m, layer.k), TORCH_DTYPES[layer.dtype], device=device.torch_name)
            assert_is_linear(linear(x), weight, x)


def test_a_kernel_that_waits_cannot_be_in_a_graph_but_serves(device):
    problem = Problem(LAYER, 4)
    operands = Operands.random(LAYER, device, waiting.layout)
    default = waiting.default(problem, device)

    def plan_of(config):
        return waiting.plan(config, LAYER, device, None)

    (trial,) = measure(problem, operands, [], default, plan_of).trials
    assert trial.status == "failed"
    assert "it cannot be captured in a CUDA graph (" in trial.error
    assert "--mode server" in trial.error
    assert torch.rand(2, device=device.torch_name).isfinite().all()  # what the next problem is made of
    assert_memory_of_two_streams_is_freed(device)
    (trial,) = measure(problem, operands, [], default, plan_of, mode="server").trials
    assert trial.status == "ok"
