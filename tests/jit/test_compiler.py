"""Units to cubins: both compilers, errors, the cache on disk, ptxas' report."""

import logging
import re
import shutil
import struct
import sys
from dataclasses import replace

import pytest
from cuda_units import ADD

from autotune.families import registry
from autotune.jit import compiler
from autotune.jit.building import build_all
from autotune.jit.unit import Unit
from autotune.values.device import Device
from autotune.values.errors import CompileError
from autotune.values.layer import Layer, Problem

pytestmark = [
    pytest.mark.skipif(compiler.find_compiler() is None, reason="no CUDA compiler here"),
    pytest.mark.usefixtures("own_cache"),
]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


@pytest.fixture
def no_nvrtc(monkeypatch):
    """As where cuda-bindings is not installed."""
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    compiler._compiler.cache_clear()
    yield
    compiler._compiler.cache_clear()


def machine_of(cubin):
    """e_machine of an ELF file; 190 is CUDA."""
    return struct.unpack_from("<4s14xH", cubin)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_cubin_is_for_the_exact_arch(write, arch):
    cubin = compiler.build(write(arch=arch, AMOUNT=1))
    assert machine_of(cubin) == (b"\x7fELF", 190)
    assert f"-arch {arch} ".encode() in cubin


def test_defines_reach_the_kernel(write):
    assert compiler.build(write(AMOUNT=1)) != compiler.build(write(AMOUNT=2))


def test_includes_are_found_beside_the_source_and_in_the_shipped_folder(write, tmp_path, monkeypatch):
    (tmp_path / "beside.cuh").write_text("__device__ float twice(float x) { return 2 * x; }")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "beside.cuh").write_text("#error the working folder was searched")
    monkeypatch.chdir(elsewhere)
    source = '#include "beside.cuh"\n#include "common/ptx.cuh"\n' + ADD.replace("AMOUNT", "twice(x[0])")
    assert compiler.build(write(source))


def test_version_is_that_of_the_library():
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    _, major, minor = nvrtc.nvrtcVersion()
    assert re.fullmatch(rf"nvrtc {major}\.{minor}\.\d+", compiler.compiler_version())


def test_error_is_one_line_with_cause_arch_and_defines(write):
    unit = write(ADD.replace("x[", "y["), AMOUNT=1, TILE=8)
    with pytest.raises(compiler.SourceError) as raised:
        compiler.build(unit)
    message = str(raised.value)
    assert "\n" not in message
    for part in ("(3)", '"y" is undefined', unit.source, "sm_80", "AMOUNT=1 TILE=8"):
        assert part in message
    assert len(raised.value.log.splitlines()) > 1


def test_missing_source_and_unknown_arch(write, tmp_path):
    with pytest.raises(CompileError, match=r"nowhere\.cu: No such file"):
        compiler.build(Unit(str(tmp_path / "nowhere.cu"), (), "sm_80"))
    with pytest.raises(CompileError, match=r"gpu-architecture.*sm_7"):
        compiler.build(write(arch="sm_7", AMOUNT=1))


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-1], lambda whole: whole[:-1] + b"?", lambda _: b"", lambda whole: whole[:32]],
    ids=["cut", "changed", "empty", "checksum only"],
)
def test_damaged_cache_file_is_built_again(write, own_cache, damage):
    unit = write(AMOUNT=1)
    cubin = compiler.build(unit)
    (file,) = own_cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert compiler.build(unit) == cubin
    assert file.read_bytes() == whole


def test_unusable_cache_warns_once_and_compiles(write, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        built = build_all([write(AMOUNT=amount) for amount in range(4)], workers=2)
    assert [machine_of(cubin) for cubin in built.values()] == [(b"\x7fELF", 190)] * 4
    (warning,) = caplog.messages
    assert str(tmp_path / "file" / "cubin") in warning


def test_resources_of_a_plain_kernel(write):
    shared = "__shared__ float s[320]; s[threadIdx.x] = x[threadIdx.x]; __syncthreads();"
    text = ADD.replace("out[threadIdx.x] = x[", f"{shared} out[threadIdx.x] = s[319 - ")
    used = compiler.resources(write(text, AMOUNT=1))
    assert (used.spill_bytes, used.local_bytes, used.shared_bytes) == (0, 0, 320 * 4)
    assert 0 < used.registers <= 32


def test_resources_see_a_stack(write):
    text = """
    extern "C" __global__ void turn(float* out, int* at) {
      float a[64];
      for (int i = 0; i < 64; ++i) a[i] = out[i];
      for (int i = 0; i < 64; ++i) out[i] = a[at[i]];
    }
    """
    used = compiler.resources(write(text))
    assert (used.spill_bytes, used.local_bytes) == (0, 64 * 4)


def test_resources_see_spills(write):
    text = """
    extern "C" __global__ void __launch_bounds__(1024) greedy(float* out) {
      float a[96];
    #pragma unroll
      for (int i = 0; i < 96; ++i) a[i] = out[i * 1024 + threadIdx.x];
      __syncthreads();
    #pragma unroll
      for (int i = 0; i < 96; ++i) out[i * 1024 + threadIdx.x] = a[i] * a[(i * 7 + 1) % 96];
    }
    """
    used = compiler.resources(write(text))
    assert used.registers <= 64
    assert used.spill_bytes > 0


@pytest.mark.usefixtures("no_nvrtc")
def test_no_compiler_says_what_was_looked_for_and_the_remedy(write, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setattr(compiler, "_TOOLKIT", str(tmp_path / "usual"))
    assert compiler.find_compiler() is None
    for call in (lambda: compiler.build(write(AMOUNT=1)), lambda: build_all([write(AMOUNT=1)])):
        with pytest.raises(CompileError) as raised:
            call()
        for part in ("cuda-bindings", "toolkit/bin", "usual/bin", "pip install 'autotune-int4[cuda]'"):
            assert part in str(raised.value)


@needs_nvcc
@pytest.mark.usefixtures("no_nvrtc")
def test_nvcc_serves_where_nvrtc_is_absent(write):
    assert re.fullmatch(r"nvcc \d+\.\d+\.\d+", compiler.compiler_version())
    assert machine_of(compiler.build(write(arch="sm_90a", AMOUNT=1))) == (b"\x7fELF", 190)
    assert compiler.resources(write(AMOUNT=1)).spill_bytes == 0
    with pytest.raises(compiler.SourceError, match=r"AMOUNT.*undefined"):
        compiler.build(write())


@needs_nvcc
@pytest.mark.usefixtures("no_nvrtc")
@pytest.mark.parametrize(
    "family", [f for f in registry.families().values() if f.kind == "cuda"], ids=lambda f: f.name
)
def test_nvcc_takes_the_shipped_sources_too(family):
    a100 = Device("cuda", 0, "a GPU", "sm_80", 108, 40 << 20, 163 << 10, 80 << 30)
    layer = Layer(n=4096, k=4096)
    places = [(m, device) for m in (256, 64, 1) for device in (a100, replace(a100, arch="sm_90"))]
    spaces = ((device, family.space(Problem(layer, m), device)) for m, device in places)
    device, space = next((device, space) for device, space in spaces if space)
    unit = family.unit(space[0], layer, device)
    assert unit is None or machine_of(compiler.build(unit)) == (b"\x7fELF", 190)
