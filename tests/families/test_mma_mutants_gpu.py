"""Mutants of the real CUDA kernel are refused: each replaces lines of csrc/cuda and is compiled as it is.

That every mutant still compiles is tested without a GPU, that it is refused with one.
"""

import shutil
from dataclasses import dataclass, replace

import pytest

from autotune.bench.operands import Operands
from autotune.bench.verify import Verifier
from autotune.families.mma import FAMILY
from autotune.jit import compiler
from autotune.values.config import Config
from autotune.values.device import Device, find_device
from autotune.values.layer import Layer, Problem
from autotune.values.paths import shipped

H200 = Device("cuda", 0, "NVIDIA H200", "sm_90", 132, 60 << 20, 227 << 10, 141 << 30)
LAYER = Layer(n=328, k=8192)
TOKENS = (1, 13)
SPLIT = Config.of("mma", tile_m=16, tile_n=64, warps=4, warps_k=2, loads=2, split_k=4)
"""Scales multiply the sums of a group."""
LONG = Config.of("mma", tile_m=32, tile_n=256, warps=4, warps_k=1, loads=1, split_k=1)
"""Scales multiply the weights, and one sum runs over all of k."""
MMA, LAYOUT, NUMERIC = "mma/mma.cu", "common/layout.cuh", "common/numeric.cuh"

ADD_OTHERS = "sum = sum + ld_global_cg(partials + other * TILE_M * kQuads + i);"
STORE = "*reinterpret_cast<uint2*>(out) = {Type::from_floats(v.x, v.y), Type::from_floats(v.z, v.w)};"
SHARED = "extern __shared__ __align__(16) unsigned char shared[];"
GUARD_N = "if (row0 + column >= n) continue;"


@dataclass(frozen=True)
class Mutant:
    """`changes` are pairs of a text that stands once in the file and what takes its place."""

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    configs: tuple[Config, ...] = (SPLIT,)

    def __str__(self):
        return self.name


def mutant(name, file, *changes, configs=(SPLIT,)):
    return Mutant(name, file, tuple(zip(changes[::2], changes[1::2], strict=True)), configs)


MUTANTS = (
    mutant(
        "missing tail tile",
        MMA,
        "const long long units = k64 / kBlocks;",
        "const long long units = k64 / kBlocks - 1;",
    ),
    mutant(
        "wrong group index",
        MMA,
        "const int group = GROUP == 0 ? 0 : unit * kGroups + part;",
        "const int group = (unit * kGroups + part) / 2;",
    ),
    mutant("unwritten columns", MMA, GUARD_N, "if (row0 + column >= n - 4) continue;"),
    mutant("out-of-bounds write", MMA, GUARD_N, "if (row0 + column >= n + 4) continue;"),
    mutant(
        "race: the first block to arrive adds",
        MMA,
        "last = atom_add_acq_rel(counter, 1) == gridDim.z - 1;",
        "const u32 order = atom_add_acq_rel(counter, 1);"
        "last = order == 0; if (order == gridDim.z - 1) *counter = 0;",
        "if (last) *counter = 0;",
        "",
        # The others surely come late, as they would now and then.
        "if (splits > 1)",
        "if (split > 0) __nanosleep(20000); if (splits > 1)",
    ),
    mutant(
        "race: bits depend on the moment",
        MMA,
        STORE,
        "v.x *= 1 + static_cast<float>(clock64() / 8 % 2) / 1024; " + STORE,
    ),
    mutant(
        "stale workspace",
        MMA,
        "st_global_cg(partials + split * TILE_M * kQuads + i, sum);",
        "{ if (split > 0) st_global_cg(partials + split * TILE_M * kQuads + i, sum); }",
    ),
    mutant("counters stay", MMA, "if (last) *counter = 0;", ""),
    mutant(
        "workspace overrun",
        MMA,
        "static_cast<u64>(tile) * splits * TILE_M * kQuads;",
        "static_cast<u64>(tile + 1) * splits * TILE_M * kQuads;",
    ),
    mutant("wrong zero", LAYOUT, "b * 0x1111", "(b ^ 1) * 0x1111"),
    mutant(
        "swapped nibbles",
        NUMERIC,
        "a.x = sub_f16x2(lop3_and_or<0x000F000Fu, 0x64006400u>(word), z.g);",
        "a.x = sub_f16x2(lop3_and_or<0x000F000Fu, 0x64006400u>(upper), z.g);",
        "a.z = sub_f16x2(lop3_and_or<0x000F000Fu, 0x64006400u>(upper), z.g);",
        "a.z = sub_f16x2(lop3_and_or<0x000F000Fu, 0x64006400u>(word), z.g);",
    ),
    mutant(
        "half-precision accumulation",
        NUMERIC,
        "mma_m16n8k16_f16(d, a, b0, b1);",
        "mma_m16n8k16_f16(d, a, b0, b1);"
        "for (float& sum : d) sum = to_float(static_cast<u16>(from_floats(sum, 0.0f)));",
        configs=(SPLIT, LONG),
    ),
    mutant("a launch that does nothing", MMA, SHARED, "if (m > 0) return; " + SHARED),
    mutant(
        "split boundary off by one",
        MMA,
        "const Slice slice{static_cast<int>(units * split / splits),",
        "const Slice slice{static_cast<int>(units * split / splits) + (split > 0),",
    ),
    mutant("one slice too few", MMA, "other < splits; ++other", "other < splits - 1; ++other"),
    mutant("bias forgotten", MMA, "if (bias != nullptr)", "if (false)"),
    mutant(
        "last token wrong",
        MMA,
        "const int token = min(octet * 8 + lane() % 8, tokens.count - 1);",
        "const int token = min(octet * 8 + lane() % 8, max(tokens.count - 2, 0));",
    ),
    mutant(
        "scales of another row",
        LAYOUT,
        "* n64 + nb) * 8 + g) * 8 + 2 * b;",
        "* n64 + nb) * 8 + (g ^ 1)) * 8 + 2 * b;",
    ),
)
CONTROL = Mutant("unchanged", MMA, (), (SPLIT, LONG))


CASES = [(each, config) for each in MUTANTS for config in each.configs]


def named(value):
    return str(value)


def write_sources(mutated, folder):
    """A copy of csrc/cuda with the mutant's changes; the path of the source at its top."""
    sources = folder / "cuda"
    shutil.copytree(shipped("csrc/cuda"), sources)
    file = sources / mutated.file
    text = file.read_text()
    for old, new in mutated.changes:
        assert text.count(old) == 1, f"{mutated.file} has {text.count(old)} times: {old}"
        text = text.replace(old, new)
    file.write_text(text)
    # What a file includes is looked up beside it before it is in the shipped folder.
    for header in (sources / "common").iterdir():
        header.write_text(header.read_text().replace('#include "common/', '#include "'))
    return (sources / MMA).rename(sources / "mutant.cu")


def build(mutated, config, device, folder):
    unit = FAMILY.unit(config, LAYER, device)
    return compiler.build(replace(unit, source=str(write_sources(mutated, folder))))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "cache"))


needs_compiler = pytest.mark.skipif(compiler.find_compiler() is None, reason="no CUDA compiler here")


@needs_compiler
@pytest.mark.parametrize(("mutated", "config"), CASES, ids=named)
def test_a_mutant_compiles_to_another_kernel(mutated, config, tmp_path):
    assert build(mutated, config, H200, tmp_path) != compiler.build(FAMILY.unit(config, LAYER, H200))


@needs_compiler
@pytest.mark.parametrize("config", CONTROL.configs, ids=named)
def test_the_unchanged_copy_compiles_to_the_same_kernel(config, tmp_path):
    assert build(CONTROL, config, H200, tmp_path) == compiler.build(FAMILY.unit(config, LAYER, H200))


@pytest.mark.parametrize("config", CONTROL.configs, ids=named)
def test_the_configs_are_valid(config):
    for m in TOKENS:
        assert FAMILY.reject(config, Problem(LAYER, m), H200) is None


@pytest.fixture(scope="module")
def verifiers():
    operands = Operands.random(LAYER, find_device("cuda"), seed=3)
    return {m: Verifier(operands, m, seed=m) for m in TOKENS}


def refusals(mutated, config, verifiers, folder):
    """What each verifier says of the config's plan, by m."""
    device = find_device("cuda")
    plan = FAMILY.plan(config, LAYER, device, build(mutated, config, device, folder))
    return {m: verifier.error(plan) for m, verifier in verifiers.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONTROL.configs, ids=named)
def test_the_unchanged_source_passes(verifiers, config, tmp_path):
    assert refusals(CONTROL, config, verifiers, tmp_path) == dict.fromkeys(TOKENS)
    assert all(verifier.deviation < 0.9 for verifier in verifiers.values())


@pytest.mark.gpu
@pytest.mark.parametrize(("mutated", "config"), CASES, ids=named)
def test_a_mutant_is_refused(verifiers, mutated, config, tmp_path):
    assert any(refusals(mutated, config, verifiers, tmp_path).values())
