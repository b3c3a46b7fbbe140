"""Which changes of csrc/cuda make records stale."""

from __future__ import annotations

import shutil

import pytest
from test_cuda_space import A100, H200

from autotune.kernels import compiler, family, registry
from autotune.kernels.family import hash_sources
from autotune.layer import Layer, Problem
from autotune.paths import shipped

SOURCES = shipped("csrc/cuda")


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The sources in a folder of the test's own, which is the one that counts."""
    folder = tmp_path / "cuda"
    shutil.copytree(SOURCES, folder)
    monkeypatch.setattr(family, "_source_folder", lambda: folder)
    monkeypatch.setattr(compiler, "shipped", lambda _: folder)
    return folder


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "is_another"),
    [
        ("// ", "// once more, ", False),
        ("\n  ", "\n      ", False),
        ("\n}", "\n\n}", False),
        ("kWarps * 32", "kWarps * 31", True),
        ("#pragma unroll 1\n", "#pragma unroll 1 ", True),
        ('#include "common/layout.cuh"', '//#include "common/layout.cuh"', True),
    ],
)
def test_comments_and_spaces_do_not_count(copy, old, new, is_another):
    before = hash_sources("decode.cu")
    edit(copy / "decode.cu", old, new)
    assert (hash_sources("decode.cu") != before) == is_another


def test_every_file_of_a_family_counts(copy):
    wgmma = registry.families()["wgmma"]
    before = wgmma.source_hash()
    edit(copy / "wgmma" / "sums.cuh", "results.tokens + 7", "results.tokens + 8")
    assert wgmma.source_hash() != before


@pytest.mark.skipif(compiler.find_compiler() is None, reason="no CUDA compiler here")
@pytest.mark.parametrize(("device", "m"), [(A100, 16), (H200, 1), (H200, 16), (H200, 1024)])
def test_what_is_hashed_decides_the_kernel(copy, device, m):
    problem = Problem(Layer(4096, 4096), m)
    config = registry.default_config(problem, device)
    unit = registry.family_of(config).unit(config, problem.layer, device)
    kernel, _ = compiler._compile(unit)
    for path in copy.rglob("*.cu*"):
        path.write_text(family._code(path.read_text()))
    assert compiler._compile(unit)[0] == kernel
