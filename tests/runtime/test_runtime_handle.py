"""Handles name the same plans in every process: pickles, exported programs, compiled graphs."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import SUPPORT
from runtime_tools import assert_is_linear, store_records, tokens_of, weight_of

from autotune.families import registry
from autotune.records.lookup import Lookup
from autotune.runtime.handle import handle_of, origin_of
from autotune.runtime.linear import Int4Linear
from autotune.runtime.op import int4_linear
from autotune.runtime.plans import LayerPlans, plans_of
from autotune.values.device import cpu_device, cuda_devices, find_device
from autotune.values.errors import LayerError
from autotune.values.layer import Layer, Problem

LAYER, OTHER = Layer(136, 256, group_size=64), Layer(72, 256, group_size=32)
X = tokens_of((3, LAYER.k), torch.float16)


def tuned(path: Path) -> Lookup:
    """A Lookup whose database has a config for one token that is not the default."""
    problem, device = Problem(LAYER, 1), cpu_device()
    default = registry.default_config(problem, device)
    config = next(config for config in registry.space(problem, device) if config != default)
    store_records(path, device, {problem: config})
    return Lookup(device, str(path))


def elsewhere(script: str, *arguments: object, **environment: str) -> str:
    """What a fresh process prints that runs the script, with the tests' own modules at hand."""
    path = os.pathsep.join((str(SUPPORT), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-c", script, *map(str, arguments)]
    run = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_handle_says_what_its_plans_are_made_of(tmp_path: Path) -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER))
    origin = origin_of(linear.plans.handle)
    assert (origin.layer, origin.kind, origin.db, origin.kernels) == (LAYER, "cpu", None, None)
    explicit = Int4Linear.from_quantized(weight_of(LAYER), lookup=tuned(tmp_path / "mine é.db"))
    assert origin_of(explicit.plans.handle).db == str(tmp_path / "mine é.db")
    assert explicit.plans.handle.isascii()


def test_a_handle_tells_apart_for_which_tokens_a_config_was_found(tmp_path: Path) -> None:
    device, plans = cpu_device(), []
    config = registry.default_config(Problem(LAYER, 64), device)
    for m in (40, 48):
        store_records(tmp_path / "mine.db", device, {Problem(LAYER, m): config})
        plans.append(LayerPlans(LAYER, Lookup(device, str(tmp_path / "mine.db"))))
        for file in tmp_path.glob("mine.db*"):
            file.unlink()
    first, second = ([answer.config for answer in each.answers] for each in plans)
    assert first == second
    assert plans[0].handle != plans[1].handle


@pytest.mark.parametrize("handle", ["", "3", "[]", '[1,2,3,"fp16",true,"cpu",null,null,""]', "null"])
def test_what_is_no_handle_is_an_error(handle: str) -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER))
    with pytest.raises(LayerError, match="names no layer"):
        int4_linear(X, linear.qweight, linear.scales, linear.zeros, None, handle)


def test_a_handle_has_no_secrets() -> None:
    handle = handle_of(LAYER, "cpu", "postgresql://me:secret@host/autotune", None, {})
    assert "secret" not in handle
    assert origin_of(handle).db == "postgresql://"


def test_the_database_of_a_lookup_stays_that_of_its_linears(tmp_path: Path) -> None:
    """Through copies and pickles, while another database is in force."""
    linear = Int4Linear.from_quantized(weight_of(LAYER), lookup=tuned(tmp_path / "mine.db")).eval()
    assert linear.plans.answers[0].source == "exact"
    for twin in (copy.deepcopy(linear), copy.copy(linear), pickle.loads(pickle.dumps(linear))):
        assert twin.plans is linear.plans
        assert torch.equal(twin(X), linear(X))


ANSWER = """
import pickle, sys
from pathlib import Path
for name in sys.argv[1:]:
    print(pickle.loads(Path(name).read_bytes()).plans.answers[0].config)
"""


def test_a_pickle_is_answered_by_its_own_database_or_the_one_in_force(tmp_path: Path) -> None:
    lookup, untuned = tuned(tmp_path / "mine.db"), Lookup(cpu_device())
    for name, chosen in (("explicit", lookup), ("in force", None)):
        linear = Int4Linear.from_quantized(weight_of(LAYER), lookup=chosen)
        (tmp_path / name).write_bytes(pickle.dumps(linear))
    tuned_config, default = (str(each.answer(Problem(LAYER, 1)).config) for each in (lookup, untuned))
    for there, in_force in (("none.db", default), ("mine.db", tuned_config)):
        pickles = tmp_path / "explicit", tmp_path / "in force"
        out = elsewhere(ANSWER, *pickles, AUTOTUNE_DB=str(tmp_path / there))
        assert out.splitlines() == [tuned_config, in_force]


EXPORTED = """
import sys, torch
from runtime_tools import weight_of
from autotune.values.layer import Layer
from autotune.runtime.linear import Int4Linear
# Another layer is made first here.
other = Int4Linear.from_quantized(weight_of(Layer(72, 256, group_size=32)))
program = torch.export.load(sys.argv[1]).module()
torch.save(program(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_an_exported_program_computes_the_same_in_another_process(tmp_path: Path) -> None:
    weight = weight_of(LAYER)
    linear = Int4Linear.from_quantized(weight, torch.ones(LAYER.n), lookup=tuned(tmp_path / "mine.db"))
    program = torch.export.export(linear.eval(), (X,))
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save(X, tmp_path / "x.pt")
    elsewhere(EXPORTED, tmp_path / "program.pt2", tmp_path / "x.pt", tmp_path / "out.pt")
    assert_is_linear(torch.load(tmp_path / "out.pt"), weight, X, torch.ones(LAYER.n))


COMPILED = """
import sys, torch
from runtime_tools import tokens_of, weight_of
from autotune.values.layer import Layer
from autotune.runtime.linear import Int4Linear
from torch._dynamo.utils import counters

layers = {"a": Layer(136, 256, group_size=64), "b": Layer(72, 256, group_size=32)}
linears = {name: Int4Linear.from_quantized(weight_of(layers[name])).eval() for name in sys.argv[1]}
for name, linear in linears.items():
    x = tokens_of((3, 256), torch.float16)
    with torch.no_grad():
        assert torch.equal(torch.compile(linear, fullgraph=True)(x), linear(x)), name
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


def test_a_compiled_graph_is_found_by_a_process_that_makes_layers_in_another_order(tmp_path: Path) -> None:
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    cache["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"
    assert elsewhere(COMPILED, "ab", **cache) == "0 2"
    assert elsewhere(COMPILED, "ba", **cache) == "2 0"


def test_plans_that_nothing_holds_are_made_again(tmp_path: Path) -> None:
    lookup = Lookup(cpu_device(), str(tmp_path / "elsewhere.db"))
    linear = Int4Linear.from_quantized(weight_of(LAYER), lookup=lookup).eval()
    expected, handle = linear(X), linear.plans.handle
    held = (linear.qweight, linear.scales, linear.zeros, linear.bias)
    del linear, lookup
    assert torch.equal(int4_linear(X, *held, handle), expected)
    assert plans_of(handle, -1).layer == LAYER


def test_a_weight_for_another_kind_of_device_is_named() -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER))
    handle = handle_of(LAYER, "cuda", "somewhere.db", None, {})
    with pytest.raises(LayerError, match="x is on cpu, but the weight is packed for cuda"):
        int4_linear(X, linear.qweight, linear.scales, linear.zeros, None, handle)


@pytest.mark.gpu
@pytest.mark.skipif(len(cuda_devices()) < 2, reason="needs two GPUs")
def test_a_linear_runs_the_plans_of_the_gpu_it_is_on(tmp_path: Path) -> None:
    layer = Layer(1032, 2048)
    weight = weight_of(layer, device="cuda:0")
    lookup = Lookup(find_device("cuda:0"), str(tmp_path / "mine.db"))
    linear = Int4Linear.from_quantized(weight, lookup=lookup).eval()
    x = tokens_of((3, layer.k), torch.float16, device="cuda:0")
    expected, handle = linear(x), linear.plans.handle
    held = [buffer.to("cuda:1") for buffer in linear.buffers()]
    assert torch.equal(int4_linear(x.to("cuda:1"), *held, None, handle).cpu(), expected.cpu())
    assert plans_of(handle, 1).device.index == 1
    linear.to("cuda:1")
    assert linear.plans.device.index == 1
    assert origin_of(linear.plans.handle).db == str(tmp_path / "mine.db")
    assert torch.equal(linear(x.to("cuda:1")).cpu(), expected.cpu())
    with pytest.raises(LayerError, match="x is on cuda:0, but qweight is on cuda:1"):
        linear(x)
