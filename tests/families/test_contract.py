"""Every registered family fulfils what `autotune.testing` asks of any."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.families import registry
from autotune.families.gemm import CudaFamily
from autotune.jit import compiler
from autotune.testing import CHECKS, check_geometry, check_space

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


def test_a_default_that_is_not_valid_is_found(monkeypatch):
    family = FAMILIES[0]
    monkeypatch.setattr(type(family), "misfit", lambda *_: "it never fits")
    monkeypatch.setattr(type(family), "default", lambda self, *_: family.config(*[1] * len(self.tunables)))
    with pytest.raises(AssertionError, match="is rejected"):
        check_space(family)


@pytest.mark.parametrize("family", [each for each in FAMILIES if isinstance(each, CudaFamily)], ids=named)
def test_the_device_code_exports_its_geometry(family):
    assert (compiler.source_folder() / family.source).with_name("geometry.cu").is_file()
