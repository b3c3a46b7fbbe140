"""Which changes of the code make records stale: those of a kernel's unit and of its launches."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from known import A100, H200

from autotune import _C
from autotune.families import decode, dequant_matmul, mma, prefill, registry, wgmma
from autotune.jit import compiler, sources
from autotune.jit.sources import source_hash
from autotune.jit.unit import Unit
from autotune.layouts import PackedWeight
from autotune.values.errors import CompileError
from autotune.values.layer import Layer, Problem
from autotune.values.paths import shipped

SOURCES = shipped("csrc/cuda")
LAYER = Layer(4096, 4096)
PROBLEMS = [Problem(LAYER, m) for m in (3, 7, 100, 300, 1024)] + [Problem(Layer(28672, 4096), 2048)]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The sources in a folder of the test's own, which is the one that counts."""
    folder = tmp_path / "cuda"
    shutil.copytree(SOURCES, folder)
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
    before = source_hash("decode/decode.cu")
    edit(copy / "decode" / "decode.cu", old, new)
    assert (source_hash("decode/decode.cu") != before) == is_another


@pytest.mark.parametrize("name", ["wgmma/sums.cuh", "wgmma/block.cuh", "common/wgmma.cuh", "common/ptx.cuh"])
def test_what_is_included_counts_however_deep(copy, name):
    before = source_hash("wgmma/wgmma.cu")
    (copy / name).write_text((copy / name).read_text() + "\nconstexpr int kMore = 1;\n")
    assert source_hash("wgmma/wgmma.cu") != before


def test_names_and_folders_of_files_do_not_count(copy):
    before = source_hash("wgmma/wgmma.cu")
    (copy / "wgmma" / "sums.cuh").rename(copy / "common" / "together.cuh")
    edit(copy / "wgmma" / "wgmma.cu", '"wgmma/sums.cuh"', '"common/together.cuh"')
    (copy / "wgmma" / "wgmma.cu").rename(copy / "wgmma" / "all.cu")
    edit(copy / "wgmma" / "all.cu", '"wgmma/block.cuh"', '"block.cuh"')
    assert source_hash("wgmma/all.cu") == before
    one, other = (Unit(name, (("A", 1),), "sm_90a") for name in ("wgmma/all.cu", "wgmma/wgmma.cu"))
    assert one.key != other.key  # there is no such file any more


@pytest.mark.parametrize("line", ["#include <cuda_fp16.h>", "# include NAME", '#include "nowhere.cuh"'])
def test_an_include_whose_text_is_not_known_is_refused(copy, line):
    edit(copy / "common" / "ptx.cuh", "#pragma once", f"#pragma once\n{line}")
    with pytest.raises(CompileError, match=r"common/ptx.cuh includes .*; use #include"):
        source_hash("mma/mma.cu")


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


@pytest.mark.parametrize(
    ("module", "name", "change"),
    [
        (wgmma, "_least_blocks", lambda blocks: lambda *args: blocks(*args) + 1),  # a define of the unit
        (wgmma, "_launch", lambda launch: lambda *args: replace(launch(*args), threads=32)),
        (decode, "_launch", lambda launch: lambda *args: replace(launch(*args), arguments=(9,))),
        (mma, "_launch", lambda launch: lambda *args: replace(launch(*args), programmatic=None)),
        (dequant_matmul, "_chunk_rows", lambda rows: lambda *args: rows(*args) // 128 * 64),
    ],
)
def test_another_unit_or_launch_is_another_kernel_and_of_its_own_family_only(
    monkeypatch, configs, module, name, change
):
    before = kernel_hashes(configs)
    monkeypatch.setattr(module, name, change(getattr(module, name)))
    after = kernel_hashes(configs)
    for key, config in configs.items():
        assert (after[key] != before[key]) == (config.family == module.FAMILY.name)
    assert before != after


def test_what_an_estimate_prefers_is_no_part_of_a_kernel(monkeypatch, configs):
    before = kernel_hashes(configs)
    monkeypatch.setattr(wgmma, "_WAVE_US", 50.0)
    monkeypatch.setattr(decode, "_WAVE_US", 50.0)
    assert any(registry.default_config(*key) != config for key, config in configs.items())
    assert kernel_hashes(configs) == before


class Function:
    """In the place of a loaded kernel, which needs a GPU: keeps how it is launched."""

    ran: ClassVar[list[tuple]] = []

    def __init__(self, *_):
        self.ran.clear()

    def launch(self, grid, threads, shared_bytes, _, arguments, programmatic):
        self.ran.append((grid, threads, shared_bytes, programmatic, arguments))


class DequantMatmul:
    """Likewise; it is told its launches when it is made."""

    MATMUL_BYTES = 0

    def __init__(self, *arguments):
        Function.ran[:] = [(*shape, (start, rows)) for *shape, start, rows in arguments[-1]]

    def run(self, *_):
        pass


@pytest.mark.parametrize("device", [A100, H200], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_what_is_hashed_is_what_is_launched(monkeypatch, problem, device):
    config, layer = registry.default_config(problem, device), problem.layer
    family = registry.family_of(config)
    module = {each.FAMILY.name: each for each in (decode, dequant_matmul, mma, prefill, wgmma)}[family.name]
    monkeypatch.setattr(_C, "CudaFunction", Function)
    monkeypatch.setattr(_C, "DequantMatmul", DequantMatmul)
    monkeypatch.setattr(module, "current_stream", lambda _: 0)
    plan = family.plan(config, layer, device, b"")
    x, out = (torch.empty(problem.m, width, dtype=torch.float16) for width in (layer.k, layer.n))
    packed = PackedWeight(layer, "cuda", x, x, x)
    plan.run(x, packed, None, out, torch.empty(plan.workspace_bytes(problem.m), dtype=torch.uint8))
    named = family.launches(config, problem, device)
    assert len(Function.ran) == len(named) > 0
    for (*shape, arguments), launch in zip(Function.ran, named, strict=True):
        assert tuple(shape) == (launch.grid, launch.threads, launch.shared_bytes, launch.programmatic)
        assert set(launch.arguments) <= set(arguments)
    if family.name == "wgmma":
        assert {launch.box_rows for launch in named} == {config["tile_m"]}


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
