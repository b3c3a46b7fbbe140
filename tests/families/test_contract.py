"""Every registered family fulfils what `autotune.testing` asks of any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from known import H200

from autotune.families import registry
from autotune.families.gemm import CudaFamily
from autotune.jit import compiler
from autotune.testing import CHECKS, check_geometry, check_space
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem
from autotune.values.scheme import Scheme

FAMILIES = list(registry.families().values())
needs_a_compiler = pytest.mark.skipif(compiler.find_compiler() is None, reason="no CUDA compiler here")


def named(value):
    return getattr(value, "__name__", None) or value.name


@pytest.mark.parametrize("check", CHECKS, ids=named)
@pytest.mark.parametrize("family", [each for each in FAMILIES if each.kind == "cpu"], ids=named)
def test_a_family_of_the_cpu(family, check):
    check(family)


@pytest.mark.parametrize("check", CHECKS[:-1], ids=named)
@pytest.mark.parametrize("family", [each for each in FAMILIES if each.kind == "cuda"], ids=named)
def test_a_family_of_gpus(family, check):
    check(family)


@pytest.mark.gpu
@pytest.mark.parametrize("family", [each for each in FAMILIES if each.kind == "cuda"], ids=named)
def test_results_on_a_gpu(family):
    CHECKS[-1](family)


@needs_a_compiler
@pytest.mark.parametrize("change", [{"threads": 32}, {"shared_bytes": 16}], ids=str)
@pytest.mark.parametrize("family", [each for each in FAMILIES if isinstance(each, CudaFamily)], ids=named)
def test_a_launch_that_is_not_the_device_code_s_is_found(family, change, monkeypatch):
    made = family.geometry.launch
    monkeypatch.setattr(family.geometry, "launch", lambda *asked: replace(made(*asked), **change))
    of_all = family.geometry.launches
    monkeypatch.setattr(
        family.geometry, "launches", lambda *asked: tuple(replace(each, **change) for each in of_all(*asked))
    )
    with pytest.raises(AssertionError, match="the device code exports"):
        check_geometry(family)


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_a_weight_of_another_kind_is_refused(family, monkeypatch):
    """Else a kernel would read bytes of a new kind of weight as int4."""
    device = cpu_device() if family.kind == "cpu" else H200
    (least, *_) = (m for m in (1, 16, 256) if family.default(Problem(Layer(4096, 4096), m), device))
    config = family.default(Problem(Layer(4096, 4096), least), device)
    monkeypatch.setattr("autotune.values.scheme._WEIGHTS", ("int4", "int8"))
    problem = Problem(Layer(4096, 4096, Scheme.parse("int8-g128-zp-fp16")), least)
    assert family.default(problem, device) is None
    assert family.space(problem, device) == []
    assert family.reject(config, problem, device) == "it multiplies int4 weights, not int8"
    assert str(problem.layer) == "n=4096,k=4096,scheme=int8-g128-zp-fp16"


def test_a_default_that_is_not_valid_is_found(monkeypatch):
    family = FAMILIES[0]
    monkeypatch.setattr(type(family), "misfit", lambda *_: "it never fits")
    monkeypatch.setattr(type(family), "default", lambda self, *_: family.config(*[1] * len(self.tunables)))
    with pytest.raises(AssertionError, match="is rejected"):
        check_space(family)


@pytest.mark.parametrize("family", [each for each in FAMILIES if isinstance(each, CudaFamily)], ids=named)
def test_the_device_code_exports_its_geometry(family):
    assert (compiler.source_folder() / family.source).with_name("geometry.cu").is_file()
