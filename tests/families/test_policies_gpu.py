"""On a GPU: rows that have the same bits with any others, and calls that have the same bits on any stream."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable

import pytest
import torch
from invariance import TOKENS, assert_batch_invariant

from autotune.bench.operands import Operands
from autotune.families import registry
from autotune.families.protocol import Plan
from autotune.families.workspace import workspace
from autotune.jit.building import build_all
from autotune.records.lookup import Lookup
from autotune.values.config import Config
from autotune.values.device import find_device
from autotune.values.errors import CompileError
from autotune.values.layer import Layer, Problem

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:no config was measured")]

LAYERS = [
    Layer(6144, 4096),
    Layer(1032, 2048, group_size=64, dtype="bf16"),
    Layer(520, 2112, group_size=32, zero_point=False),
    Layer(2048, 1024, group_size=1024, dtype="bf16", zero_point=False),
    Layer(4096, 14336, dtype="bf16"),
]
FEW = 16
"""Configs of each order that are compared."""


@pytest.fixture(autouse=True)
def _own_database(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "none.db"))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_rows_have_the_same_bits_with_any_others(layer: Layer) -> None:
    assert_batch_invariant(layer, Lookup(find_device("cuda"), policy="batch_invariant"))


@pytest.mark.parametrize("layer", LAYERS[:3], ids=str)
def test_other_gpus_have_batch_invariant_configs_too(layer: Layer) -> None:
    """Of the families that need no sm_90."""
    device = find_device("cuda")
    elsewhere = [each.name for each in registry.families_of(device) if getattr(each, "hopper", None) is None]
    assert_batch_invariant(layer, Lookup(device, names=elsewhere, policy="batch_invariant"))


@pytest.mark.parametrize("layer", LAYERS[:3], ids=str)
def test_configs_of_one_order_give_the_same_bits(layer: Layer) -> None:
    """Those of different families too, with any number of tokens."""
    device, chance = find_device("cuda"), random.Random(0)
    orders: dict[Hashable, list[tuple[Config, int]]] = defaultdict(list)
    for m in TOKENS:
        for family in registry.families_of(device):
            for config in family.ordered(Problem(layer, m), device):
                orders[family.order(config, layer, device)].append((config, m))
    chosen = {order: chance.sample(found, min(FEW, len(found))) for order, found in orders.items()}
    configs = {config for found in chosen.values() for config, _ in found}
    plans = _plans(layer, configs)
    operands = Operands.random(layer, device)
    x = operands.activations(max(TOKENS))[0].x
    for order, found in chosen.items():
        outs = [_run(plans[config], operands, x[:m])[0] for config, m in found]
        for (config, m), out in zip(found, outs, strict=True):
            assert torch.equal(out.view(torch.uint8), outs[0].view(torch.uint8)), f"{order}: {config} m={m}"
    assert len(chosen) > 1


@pytest.mark.parametrize("m", [1, 33, 512, 2048])
def test_calls_have_the_same_bits_on_several_streams_at_once(m: int) -> None:
    device, layer = find_device("cuda"), Layer(4096, 4096)
    problem = Problem(layer, m)
    defaults = [family.default(problem, device) for family in registry.families_of(device)]
    configs = {config for config in defaults if config is not None}
    plans = _plans(layer, configs)
    operands = Operands.random(layer, device)
    x = operands.activations(m)[0].x
    streams = [torch.cuda.Stream() for _ in range(4)]
    for config in configs:
        alone = _run(plans[config], operands, x)
        torch.cuda.synchronize()
        outs = []
        for turn in range(40):
            with torch.cuda.stream(streams[turn % len(streams)]):
                outs.append(_run(plans[config], operands, x))
        torch.cuda.synchronize()
        assert all(torch.equal(out, alone) for out in outs), config


def _plans(layer: Layer, configs: set[Config]) -> dict[Config, Plan]:
    device = find_device("cuda")
    units = {config: registry.family_of(config).unit(config, layer, device) for config in configs}
    built = build_all({unit.key: unit for unit in units.values() if unit is not None}.values())
    plans = {}
    for config, unit in units.items():
        cubin = None if unit is None else built[unit.key]
        assert not isinstance(cubin, CompileError)
        plans[config] = registry.family_of(config).plan(config, layer, device, cubin)
    return plans


def _run(plan: Plan, operands: Operands, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(len(x), operands.layer.n, dtype=x.dtype, device=x.device)
    scratch = workspace(x.device, plan.workspace_bytes(len(x)))
    plan.run(x, operands.copies[0], None, out, scratch)
    return out
