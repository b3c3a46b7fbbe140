"""What a kernel of one's own is: its space, its checks, its layout, and that nobody else sees it."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from external_kernels import few_tokens, for_gpus, repeating, with_its_own_layout
from places import BENCHMARKS, SUPPORT
from real_families import CPU_FAMILY

import autotune
from autotune.bench.operands import Operands
from autotune.bench.verify import Verifier
from autotune.executors.kernel import KernelExecutor, kernel_executors
from autotune.families import registry
from autotune.families.external import load_kernel
from autotune.layouts import QuantizedWeight
from autotune.layouts.packed import Layout
from autotune.values.config import Config
from autotune.values.device import cpu_device, cuda_devices
from autotune.values.errors import ConfigError, DeviceError, LaunchError, LayerError
from autotune.values.layer import Layer, Problem

DEVICE = replace(cpu_device(), l2_bytes=1 << 16)
LAYER = Layer(64, 128)


def plain(x, weight, out, *, tile, split_k=1):
    pass


def test_the_space_is_every_combination_that_is_supported():
    kernel = autotune.kernel(
        space={"tile": (8, 4), "split_k": (1, 2)},
        default={"split_k": 2},
        name="combined",
        supports=lambda problem, config: (
            "too much" if config["tile"] * config["split_k"] > problem.m else None
        ),
        device="cpu",
    )(plain)
    space = [str(config) for config in kernel.space(Problem(LAYER, 8), DEVICE)]
    assert space == ["combined:tile=8,split_k=1", "combined:tile=4,split_k=1", "combined:tile=4,split_k=2"]
    assert str(kernel.default(Problem(LAYER, 16), DEVICE)) == "combined:tile=8,split_k=2"
    assert str(kernel.default(Problem(LAYER, 4), DEVICE)) == "combined:tile=4,split_k=1"
    assert kernel.default(Problem(LAYER, 2), DEVICE) is None
    assert kernel.why_not(Problem(LAYER, 2), DEVICE) == "too much"
    assert kernel.why_not(Problem(LAYER, 4), DEVICE) is None
    gpu = replace(DEVICE, kind="cuda")
    assert kernel.why_not(Problem(LAYER, 16), gpu) == "it runs on cpu"
    assert kernel.reject(Config.of("combined", tile=8), Problem(LAYER, 16), DEVICE) == (
        "its tunables are tile, split_k"
    )
    other = Config.of("combined", tile=5, split_k=1)
    assert kernel.reject(other, Problem(LAYER, 16), DEVICE) == "tile=5 is not one of 8, 4"


def test_a_kernel_without_tunables_has_one_config():
    kernel = autotune.kernel(space={}, device="cpu", name="fixed")(plain)
    (config,) = kernel.space(Problem(LAYER, 1), DEVICE)
    assert config == kernel.default(Problem(LAYER, 1), DEVICE) == Config.parse(str(config))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"space": {"TILE": (1,)}}, "tunable 'TILE' is not lower case"),
        ({"space": {"warps": (4,)}}, "has a space for warps, but takes no such argument"),
        ({"space": {"tile": ()}}, "tile has no values"),
        ({"space": {"tile": (4, "8")}}, "tile='8' is not a whole number"),
        ({"space": {"tile": (4, -8)}}, "tile=-8 is not a whole number"),
        ({"space": {"tile": (4,)}, "default": {"tile": 8}}, "default tile=8 is not in its space"),
        ({"space": {"tile": (4,)}, "default": {"warps": 8}}, "default warps=8 is not in its space"),
        ({"space": {"tile": (4,)}, "name": "My GEMM"}, "kernel name 'My GEMM' is not lower case"),
        ({"space": {"tile": (4,)}, "device": "gpu"}, "device='gpu' is not one of cuda, cpu"),
        (
            {"space": {"tile": (4,)}, "name": CPU_FAMILY.name},
            f"kernel name {CPU_FAMILY.name} of .* is autotune's own",
        ),
        ({"space": {"tile": (4,)}, "name": "repeating"}, "is that of .*external_kernels.py:repeating"),
    ],
)
def test_a_definition_that_does_not_fit_is_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        autotune.kernel(**{"name": "bad", **options})(plain)


def test_a_function_without_a_file_is_refused():
    with pytest.raises(ConfigError, match="kernel typed is not in a file"):
        autotune.kernel(space={}, name="typed")(eval("lambda x, weight, out: None"))


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("kernels.py", "does not read as file.py:name"),
        (":name", "does not read as file.py:name"),
        ("missing/kernels.py:name", "kernel file .*missing/kernels.py is not there"),
        (f"{SUPPORT}/external_kernels.py:nothing", "has no kernel nothing; its kernels are .*repeating.*"),
        (f"{SUPPORT}/external_kernels.py:not_a_kernel", "has no kernel not_a_kernel"),
        (f"{SUPPORT}/other_module.py:multiply", "decorate it with @autotune.kernel"),
        ("no_such_package.kernels:name", "does not import: ModuleNotFoundError"),
        ("{tmp}/broken.py:name", "does not import: SyntaxError"),
        ("{tmp}/json.py:name", "has the name of .*json/__init__.py; rename it"),
    ],
)
def test_a_reference_that_names_no_kernel_is_refused(reference, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken.py").write_text("def")
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigError, match=reason):
        load_kernel(reference.format(tmp=tmp_path))


def test_a_kernel_is_found_by_file_and_by_module():
    assert load_kernel(f"{SUPPORT}/external_kernels.py:repeating") is repeating
    assert load_kernel("external_kernels:repeating") is repeating
    assert load_kernel(f"{BENCHMARKS}/own_kernel.py:torch_chunks").kind == "cpu"


def test_it_is_still_the_function():
    x, weight, out = torch.ones(1, 128), Operands.random(LAYER, DEVICE).weight, torch.empty(1, 64)
    repeating(x, weight, out, repeats=1)
    assert torch.equal(out, x @ autotune.layouts.dequantize(weight).T)
    assert (repeating.__name__, repeating.__doc__) == ("repeating", "Fewer repeats are faster for certain.")


def test_nobody_sees_it_who_did_not_name_it():
    problem = Problem(LAYER, 1)
    config = Config.of("repeating", repeats=1)
    assert registry.family_of(config) is repeating
    assert "repeating" not in registry.families()
    assert {config.family for config in registry.space(problem, DEVICE)} == {CPU_FAMILY.name}
    assert registry.default_config(problem, DEVICE).family == CPU_FAMILY.name
    assert registry.families_of(DEVICE, ("repeating",)) == [repeating]
    assert registry.default_config(problem, DEVICE, ("repeating",)) == Config.of("repeating", repeats=20)
    # Nobody knows how long it takes, but who names a kernel wants it to run.
    assert registry.default_config(problem, DEVICE, (CPU_FAMILY.name, "repeating")).family == "repeating"
    assert {config.family for config in registry.space(problem, DEVICE, (CPU_FAMILY.name, "repeating"))} == {
        CPU_FAMILY.name,
        "repeating",
    }
    with KernelExecutor(cpu_device(), f"{SUPPORT}/external_kernels.py:repeating") as executor:
        assert executor.environment.sources == {"repeating": repeating.source_hash()}


def test_its_executor_is_for_its_kind_of_device():
    (executor,) = kernel_executors(f"{SUPPORT}/external_kernels.py:repeating")
    assert executor.device == cpu_device()
    with pytest.raises(DeviceError, match="repeating runs on cpu, not on"):
        KernelExecutor(replace(DEVICE, kind="cuda"), f"{SUPPORT}/external_kernels.py:repeating")


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU")
def test_a_kernel_for_gpus_says_the_same_whatever_device_is_asked_for_without_one():
    """And it sends nobody to a device that it would refuse next."""
    reference = f"{SUPPORT}/external_kernels.py:for_gpus"
    asked = [partial(kernel_executors, reference, names) for names in ("auto", "all", "cpu", "cuda:0")]
    asked += [partial(for_gpus.lookup, device) for device in (None, "cpu", "cuda")]
    said = set()
    for ask in asked:
        with pytest.raises(DeviceError) as error:
            ask()
        said.add(str(error.value))
    (line,) = said
    assert line.startswith("kernel for_gpus is for GPUs: no NVIDIA GPU here (")
    assert 'device="cpu"' in line
    assert "--device" not in line


def test_copies_are_in_its_layout_and_exceed_the_cache():
    operands = Operands.random(LAYER, DEVICE, with_its_own_layout.layout)
    dense = [copy["dense"] for copy in operands.copies]
    assert sum(each.nbytes for each in dense) > 3 * DEVICE.l2_bytes
    assert len({each.data_ptr() for each in dense}) == len(dense)
    assert all(torch.equal(each, dense[0]) for each in dense)
    plan = with_its_own_layout.plan(Config.of("packed", parts=2), LAYER, DEVICE, None)
    assert Verifier(operands, 3, seed=1).error(plan) is None


def test_the_reference_is_safe_from_a_kernel_that_changes_its_weight():
    operands = Operands.random(LAYER, DEVICE, repeating.layout)
    before = operands.weight.q.clone()
    assert isinstance(operands.copies[0], QuantizedWeight)
    operands.copies[0].q.zero_()
    assert torch.equal(operands.weight.q, before)


def test_a_layout_without_tensors_is_refused():
    with pytest.raises(LayerError, match="pack of empty made NoneType without tensors"):
        Operands.random(LAYER, DEVICE, Layout("empty", lambda _: None))


def test_what_it_raises_is_a_reason_and_a_bias_is_added():
    x, out = torch.ones(1, 128), torch.zeros(1, 64)
    weight = Operands.random(LAYER, DEVICE).weight
    plan = repeating.plan(Config.of("repeating", repeats=1), LAYER, DEVICE, None)
    plan.run(x, weight, torch.full((64,), 2.0), out, None)
    torch.testing.assert_close(out, x @ autotune.layouts.dequantize(weight).T + 2)
    with pytest.raises(LaunchError, match="it raised AttributeError"):
        plan.run(x, None, None, out, None)


def test_it_says_what_it_cannot_do(tmp_path):
    lookup = with_its_own_layout.lookup(db=str(tmp_path / "none.db"))
    tuned = with_its_own_layout.tuned(LAYER, lookup)
    weight = with_its_own_layout.layout.pack(Operands.random(LAYER, DEVICE).weight)
    tuned(torch.ones(3, 128), weight, torch.empty(3, 64))
    with pytest.raises(DeviceError, match=r"packed cannot do m=8.*: m=8 is more than 4"):
        tuned(torch.ones(5, 128), weight, torch.empty(5, 64))
    assert few_tokens(Problem(LAYER, 8), Config.of("packed", parts=1)) == "m=8 is more than 4"


def test_a_module_of_its_kind_gets_the_best_values(tmp_path):
    class Foreign(torch.nn.Module):
        parts = 8

    module, lookup = Foreign(), with_its_own_layout.lookup(db=str(tmp_path / "none.db"))
    assert with_its_own_layout.set_best(module, LAYER, m=1, lookup=lookup)
    assert module.parts == 1
    plain_linear = torch.nn.Linear(8, 8)
    assert not with_its_own_layout.set_best(plain_linear, LAYER, lookup=lookup)
    assert not hasattr(plain_linear, "parts")
