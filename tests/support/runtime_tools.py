"""What the tests of the runtime share: AutoAWQ-style modules, a reference with tolerance, a database."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from autotune.families import registry
from autotune.formats import awq_gemm
from autotune.layouts import QuantizedWeight, dequantize, random_weight
from autotune.records.lookup import Lookup
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device, driver_of
from autotune.values.layer import Layer, Problem
from autotune.values.record import Environment, Record

ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}


def weight_of(layer: Layer, seed: int = 0, device: str = "cpu") -> QuantizedWeight:
    return random_weight(layer, torch.Generator(device).manual_seed(seed))


def tokens_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 1, device: str = "cpu") -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device).to(dtype)


def assert_same(read_back: QuantizedWeight, weight: QuantizedWeight) -> None:
    assert read_back.layer == weight.layer
    assert torch.equal(read_back.q, weight.q)
    assert torch.equal(read_back.scales, weight.scales)
    if weight.zeros is None:
        assert read_back.zeros is None
    else:
        assert read_back.zeros is not None
        assert torch.equal(read_back.zeros, weight.zeros)
    kept = (read_back.q, read_back.scales, read_back.zeros)
    assert all(tensor is None or tensor.is_contiguous() for tensor in kept)


def assert_is_linear(
    out: torch.Tensor, weight: QuantizedWeight, x: torch.Tensor, bias: torch.Tensor | None = None
) -> None:
    """out is x @ dequantize(weight).T + bias, within the rounding that the kernels may do.

    With u the roundoff of x's dtype, weights may be rounded once (u of each product, which adds up in the
    worst case), k sums of q x and zero x are made in fp32, and the output is rounded once.
    """
    assert out.dtype == x.dtype
    assert out.shape == (*x.shape[:-1], weight.layer.n)
    u, wide = ROUNDOFF[x.dtype], ROUNDOFF[torch.float32]
    tokens = x.detach().double().reshape(-1, weight.layer.k)
    w = dequantize(weight).double()
    groups = weight.scales.double().repeat_interleave(weight.layer.group_size, 0).T
    expected, magnitude = tokens @ w.T, tokens.abs() @ w.abs().T
    # q and the zero are at most 15, so each of the two sums is at most 15 |s x| in all.
    folded = tokens.abs() @ (30 * groups.abs()).T
    if bias is not None:
        expected = expected + bias.double()
    bound = u * expected.abs() + u * magnitude + (weight.layer.k + 8) * wide * folded
    error = (out.detach().double().reshape(expected.shape) - expected).abs()
    worst = int((error - bound).argmax()) if error.numel() else 0
    assert bool((error <= bound).all()), f"{error.flatten()[worst]} > {bound.flatten()[worst]} at {worst}"


class AwqLinear(torch.nn.Module):
    """What AutoAWQ's gemm linear looks like from outside."""

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.w_bit, self.group_size = 4, weight.layer.group_size
        self.in_features, self.out_features = weight.layer.k, weight.layer.n
        qweight, qzeros, scales = awq_gemm.from_quantized(weight)
        self.register_buffer("qweight", qweight)
        self.register_buffer("qzeros", qzeros)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = dequantize(awq_gemm.to_quantized(self.qweight, self.qzeros, self.scales))
        bias = self.bias.float() if self.bias is not None else None
        return torch.nn.functional.linear(x.float(), w, bias).to(x.dtype)


def store_records(path: Path, device: Device, choices: dict[Problem, Config]) -> None:
    """Put a record of each problem with its config into a database."""
    sources = {family.name: family.source_hash() for family in registry.families_of(device)}
    environment = Environment(driver_of(device), "none", torch.__version__, "0.1.0", sources)
    with Store.open(str(path)) as store:
        sweep = store.begin_sweep(device, environment, {"device": asdict(device)})
        for problem, config in choices.items():
            default = registry.default_config(problem, device)
            times = {"median_us": 5.0, "low_us": 4.9, "high_us": 5.1, "default_us": 7.0}
            record = Record(
                problem=problem,
                device=device.name,
                arch=device.arch,
                config=config,
                default_config=default,
                source_hash=registry.kernel_hash(config, problem, device),
                created_at="2026-01-01T00:00:00+00:00",
                **times,
            )
            store.add_result(sweep, [], record, None)
        store.finish_sweep(sweep, "finished")


def splitting_lookup(layer: Layer, device: Device, folder: Path) -> Lookup:
    """A Lookup whose records make the layer split k for few tokens, by way of a workspace."""
    choices = {}
    for problem in (Problem(layer, m) for m in (1, 2, 4, 8, 16)):
        choices[problem] = next(
            config
            for family in registry.families_of(device)
            for config in family.valid(problem, device)
            if dict(config.values).get("split_k") == 4
            and family.geometry(config, layer, device).workspace_bytes(problem.m)
        )
    store_records(folder / "split.db", device, choices)
    return Lookup(device, str(folder / "split.db"))
