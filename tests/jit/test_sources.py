"""Which changes of the code make records stale: those of a kernel's unit and of its launches."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest
import torch
from known import A100, H200

from autotune import _C
from autotune.families import registry
from autotune.families.gemm import CudaFamily
from autotune.jit import compiler, sources
from autotune.jit.sources import source_hash
from autotune.jit.unit import Unit
from autotune.layouts import PackedWeight
from autotune.values.errors import CompileError
from autotune.values.layer import Layer, Problem
from autotune.values.paths import shipped

SOURCES = shipped("csrc/cuda")
LAYER = Layer(4096, 4096)
FAMILIES = [family for family in registry.families().values() if isinstance(family, CudaFamily)]
KERNEL = """
#include "kernel/block.cuh"
#include "common/layout.cuh"

// Adds up.
extern "C" __global__ void kernel(float* out) {
  float sum = 0.f;
#pragma unroll 1
  for (int i = 0; i < kWarps * 32; ++i) {
    sum += i;
  }
  out[0] = sum;
}
"""
BLOCK = """
#pragma once

constexpr int kWarps = 4;
"""
PROBLEMS = [Problem(LAYER, m) for m in (3, 7, 100, 300, 1024)] + [Problem(Layer(28672, 4096), 2048)]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The sources in a folder of the test's own, which is the one that counts."""
    folder = tmp_path / "cuda"
    shutil.copytree(SOURCES, folder)
    (folder / "kernel").mkdir()
    (folder / "kernel" / "kernel.cu").write_text(KERNEL)
    (folder / "kernel" / "block.cuh").write_text(BLOCK)
    for module in (sources, compiler):
        monkeypatch.setattr(module, "source_folder", lambda: folder)
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
    before = source_hash("kernel/kernel.cu")
    edit(copy / "kernel" / "kernel.cu", old, new)
    assert (source_hash("kernel/kernel.cu") != before) == is_another


@pytest.mark.parametrize("name", ["kernel/block.cuh", "common/layout.cuh", "common/ptx.cuh"])
def test_what_is_included_counts_however_deep(copy, name):
    before = source_hash("kernel/kernel.cu")
    (copy / name).write_text((copy / name).read_text() + "\nconstexpr int kMore = 1;\n")
    assert source_hash("kernel/kernel.cu") != before


def test_names_and_folders_of_files_do_not_count(copy):
    before = source_hash("kernel/kernel.cu")
    (copy / "kernel" / "block.cuh").rename(copy / "common" / "together.cuh")
    edit(copy / "kernel" / "kernel.cu", '"kernel/block.cuh"', '"common/together.cuh"')
    (copy / "kernel" / "kernel.cu").rename(copy / "kernel" / "all.cu")
    edit(copy / "kernel" / "all.cu", '"common/layout.cuh"', '"layout.cuh"')
    (copy / "common" / "layout.cuh").rename(copy / "kernel" / "layout.cuh")
    assert source_hash("kernel/all.cu") == before
    one, other = (Unit(name, (("A", 1),), "sm_90a") for name in ("kernel/all.cu", "kernel/kernel.cu"))
    assert one.key != other.key  # there is no such file any more


@pytest.mark.parametrize("line", ["#include <cuda_fp16.h>", "# include NAME", '#include "nowhere.cuh"'])
def test_an_include_whose_text_is_not_known_is_refused(copy, line):
    edit(copy / "common" / "ptx.cuh", "#pragma once", f"#pragma once\n{line}")
    with pytest.raises(CompileError, match=r"common/ptx.cuh includes .*; use #include"):
        source_hash("kernel/kernel.cu")


@pytest.fixture
def configs():
    """The default configs of problems on devices, as they are before a test changes anything."""
    return {
        (problem, device): registry.default_config(problem, device)
        for problem in PROBLEMS
        for device in (A100, H200)
    }


def kernel_hashes(configs):
    return {key: registry.kernel_hash(config, *key) for key, config in configs.items()}


def changed_defines(geometry, monkeypatch):
    made = geometry.defines
    monkeypatch.setattr(geometry, "defines", lambda self: (*made(self), ("MORE", 1)))


def changed_launches(geometry, monkeypatch, **change):
    made = geometry.launches
    monkeypatch.setattr(
        geometry, "launches", lambda self, m: tuple(replace(each, **change) for each in made(self, m))
    )


CHANGES = [
    changed_defines,
    partial(changed_launches, threads=96),
    partial(changed_launches, arguments=(9,)),
    partial(changed_launches, programmatic=None),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_another_unit_or_launch_is_another_kernel_and_of_its_own_family_only(
    monkeypatch, configs, family, change
):
    before = kernel_hashes(configs)
    change(family.geometry, monkeypatch)
    after = kernel_hashes(configs)
    for key, config in configs.items():
        assert (after[key] != before[key]) == (config.family == family.name)
    assert before != after


def test_what_an_estimate_prefers_is_no_part_of_a_kernel(monkeypatch, configs):
    before = kernel_hashes(configs)
    for family in FAMILIES:
        estimate = family.geometry.estimate
        monkeypatch.setattr(family.geometry, "estimate", lambda self, m, now=estimate: 1 / now(self, m))
    assert any(registry.default_config(*key) != config for key, config in configs.items())
    assert kernel_hashes(configs) == before


class Function:
    """In the place of a loaded kernel, which needs a GPU: keeps how it is launched."""

    ran: ClassVar[list[tuple]] = []
    boxes: ClassVar[list[tuple | None]] = []

    def __init__(self, *arguments):
        self.ran.clear()
        self.boxes[:] = arguments[3:]

    def launch(self, grid, threads, shared_bytes, _, arguments, programmatic):
        self.ran.append((grid, threads, shared_bytes, programmatic, arguments))


class DequantMatmul:
    """Likewise; it is told its launches when it is made."""

    MATMUL_BYTES = 0

    def __init__(self, *arguments):
        Function.boxes.clear()
        Function.ran[:] = [(*shape, (start, rows)) for *shape, start, rows in arguments[-1]]

    def run(self, *_):
        pass


@pytest.mark.parametrize("device", [A100, H200], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_what_is_hashed_is_what_is_launched(monkeypatch, problem, device):
    config, layer = registry.default_config(problem, device), problem.layer
    family = registry.family_of(config)
    monkeypatch.setattr(_C, "CudaFunction", Function)
    monkeypatch.setattr(_C, "DequantMatmul", DequantMatmul)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, raising=False)
    plan = family.plan(config, layer, device, b"")
    x, out = (torch.empty(problem.m, width, dtype=torch.float16) for width in (layer.k, layer.n))
    packed = PackedWeight(layer, "cuda", x, x, x)
    plan.run(x, packed, None, out, torch.empty(plan.workspace_bytes(problem.m), dtype=torch.uint8))
    named = family.launches(config, problem, device)
    assert len(Function.ran) == len(named) > 0
    for (*shape, arguments), launch in zip(Function.ran, named, strict=True):
        assert tuple(shape) == (launch.grid, launch.threads, launch.shared_bytes, launch.programmatic)
        assert set(launch.arguments) <= set(arguments)
    boxes = [made for made in Function.boxes if made]
    assert [made[1] for made in boxes] == [rows for rows in {launch.box_rows for launch in named} if rows]


@pytest.mark.skipif(compiler.find_compiler() is None, reason="no CUDA compiler here")
@pytest.mark.parametrize(("device", "m"), [(A100, 16), (H200, 1), (H200, 16), (H200, 1024)])
def test_what_is_hashed_decides_the_kernel(copy, device, m):
    problem = Problem(Layer(4096, 4096), m)
    config = registry.default_config(problem, device)
    unit = registry.family_of(config).unit(config, problem.layer, device)
    kernel, _ = compiler._compile(unit)
    for path in copy.rglob("*.cu*"):
        lines = (" ".join(line.partition("//")[0].split()) for line in path.read_text().splitlines())
        path.write_text("\n".join(filter(None, lines)))
    assert compiler._compile(unit)[0] == kernel
