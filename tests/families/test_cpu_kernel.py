"""The cpu family against an fp64 product, on every instruction set that this CPU can run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import pytest
import torch

from autotune import _C
from autotune.families.cpu import FAMILY
from autotune.layouts import PackedWeight, QuantizedWeight, dequantize, pack, random_weight
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.errors import LayerError
from autotune.values.layer import Layer, Problem
from autotune.values.scheme import DTYPES

ARCHS = ("x86_64_avx512_bf16", "x86_64_avx512", "x86_64_avx2", "portable")
TOKENS = (1, 2, 3, 7, 16, 33)
GUARD = 64


def _config(tile_n: int = 64, split_k: int = 1, threads: int = 2, unpack_m: int = 0) -> Config:
    return Config.of("cpu", tile_n=tile_n, split_k=split_k, unpack_m=unpack_m, threads=threads)


def _run(
    config: Config, packed: PackedWeight, x: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The output, after a check that nothing around it was written."""
    layer = packed.layer
    size = x.shape[0] * layer.n
    buffer = torch.full((size + 2 * GUARD,), float("nan"), dtype=x.dtype)
    out = buffer[GUARD : GUARD + size].view(x.shape[0], layer.n)
    FAMILY.plan(config, layer, cpu_device(), None).run(x, packed, bias, out, None)
    assert buffer[:GUARD].isnan().all()
    assert buffer[GUARD + size :].isnan().all()
    return out


class _Expected:
    """The fp64 result for every token of x, and the rounding errors that the method may make.

    A sum of j terms in fp32, in any order, is off by at most j u / (1 - j u) times the sum of their sizes,
    u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). The terms here are
    s (q - 8) x and s (8 - z) x; the longest chain adds a group's values, then two terms per group, then at
    most 8 parts and the bias; scaling and the fp32 reference weights add a few roundings more. Of unpacked
    weights the terms are s (q - z) x, and the chain adds at most 384 of them, then one sum for as many. With
    AVX2 one token becomes whole numbers, each off by 1/2, the largest of a group at least 0x7f7f7f / 2.
    """

    def __init__(self, weight: QuantizedWeight, x: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        layer = weight.layer
        self.exact = x.double() @ dequantize(weight).double().T
        zeros = torch.full_like(weight.q, 8)
        if weight.zeros is not None:
            zeros = weight.zeros.T.repeat_interleave(layer.group_size, dim=1)
        scales = weight.scales.double().abs().T.repeat_interleave(layer.group_size, dim=1)
        terms = (weight.q.double() - 8).abs() + (8 - zeros.double()).abs()
        sizes = x.double().abs() @ (scales * terms).T
        groups = x.double().abs().view(len(x), layer.groups, layer.group_size).amax(2)
        per_group = (
            (scales * (weight.q.double() - zeros.double()).abs()).view(layer.n, layer.groups, -1).sum(2)
        )
        self.whole = groups @ per_group.T / 0x7F7F7F
        if bias is not None:
            self.exact += bias.double()
            sizes += bias.double().abs()
        chain = max(layer.group_size + 2 * layer.groups, min(layer.k, 384) + -(-layer.k // 192))
        depth = chain + 16
        self.summed = depth * 2.0**-24 / (1 - depth * 2.0**-24) * sizes

    def check(self, out: torch.Tensor) -> None:
        """Fail unless out, of the first tokens, is within those errors and one rounding to its dtype."""
        exact, summed = self.exact[: len(out)], self.summed[: len(out)]
        if len(out) == 1 and _C.cpu_arch() == "x86_64_avx2":
            summed = summed + self.whole[:1]
        kind = torch.finfo(out.dtype)
        allowed = summed + kind.eps / 2 * (exact.abs() + summed) + kind.smallest_normal * kind.eps
        error = (out.double() - exact).abs()
        assert (error <= allowed).all(), f"error is up to {(error / allowed).max()} of what is allowed"


def _sample(layer: Layer, m: int, seed: int = 0) -> tuple[QuantizedWeight, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = random_weight(layer, generator)
    dtype = TORCH_DTYPES[layer.dtype]
    x = torch.randn(m, layer.k, generator=generator).to(dtype)
    return weight, x, torch.randn(layer.n, generator=generator).to(dtype)


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_result_is_within_rounding_error(dtype: str, group_size: int, zero_point: bool) -> None:
    for n, k in product((8, 24, 136), (72, 8) if group_size == -1 else (3 * group_size,)):
        layer = Layer(n, k, group_size=group_size, dtype=dtype, zero_point=zero_point)
        weight, x, bias = _sample(layer, max(TOKENS), seed=n + k)
        packed = pack(weight, "cpu")
        configs = [_config(16, 1, 1), _config(64, 1, 2), _config(128, 1, 3)]
        if layer.groups > 1:
            configs += [_config(32, 2, 2), _config(64, 3, 5)]
        configs += [_config(16, 1, 1, unpack_m=4), _config(64, 1, 2, unpack_m=256)]
        plain, biased = _Expected(weight, x), _Expected(weight, x, bias)
        for config, m in product(configs, TOKENS):
            plain.check(_run(config, packed, x[:m]))
            biased.check(_run(config, packed, x[:m], bias))


@pytest.mark.parametrize("group_size", [128, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_k_and_many_tokens(dtype: str, group_size: int) -> None:
    layer = Layer(n=72, k=11008, group_size=group_size, dtype=dtype)
    weight, x, bias = _sample(layer, 131)
    packed = pack(weight, "cpu")
    expected = _Expected(weight, x, bias)
    for split_k in (1, min(8, layer.groups)):
        expected.check(_run(_config(32, split_k), packed, x, bias))
    for unpack_m in (7, 128, 256):
        expected.check(_run(_config(32, unpack_m=unpack_m), packed, x, bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_values_pass_through(dtype: str) -> None:
    """The smallest subnormals, the largest numbers, infinities and NaN of the dtype, in both directions."""
    layer = Layer(n=8, k=32, group_size=32, dtype=dtype, zero_point=False)
    kind = TORCH_DTYPES[dtype]
    q = torch.full((8, 32), 8, dtype=torch.uint8)
    q[:, 0] = 9
    weight = QuantizedWeight(layer, q, torch.ones(1, 8, dtype=kind), None)
    tiny = 2.0**-24 if dtype == "fp16" else torch.finfo(kind).smallest_normal
    values = [tiny, 3 * tiny, 2.0**-14, 1.0, -1.0, torch.finfo(kind).max, -torch.finfo(kind).max]
    x = torch.zeros(len(values), 32, dtype=kind)
    x[:, 0] = torch.tensor(values, dtype=torch.float64).to(kind)
    packed = pack(weight, "cpu")
    configs = (_config(), _config(unpack_m=256))
    for config in configs:
        assert torch.equal(_run(config, packed, x)[:, 0], x[:, 0])
    x[0, 0], x[1, 0] = float("inf"), float("nan")
    for config in configs:
        out = _run(config, packed, x)
        assert torch.equal(out[0], torch.full((8,), float("inf"), dtype=kind))
        assert out[1].isnan().all()


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_groups_of_one_token_differ_in_size(dtype: str) -> None:
    """Beyond what whole numbers times a power of two reach, within it, and none but zeros."""
    layer = Layer(n=24, k=160, group_size=32, dtype=dtype)
    weight, x, bias = _sample(layer, 1)
    sizes = torch.tensor([2.0**-100, 2.0**-40, 0.0, 1.0, 2.0**70], dtype=torch.float64)
    x = (x.double().view(5, 32) * sizes[:, None]).view(1, 160).to(x.dtype)
    for most in (5, 4, 2, 1):
        x[:, most * 32 :] = 0
        _Expected(weight, x, bias).check(_run(_config(), pack(weight, "cpu"), x, bias))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_results_are_rounded_to_the_nearest_even(dtype: str) -> None:
    """torch's own conversion of the fp32 result is the reference; sums of two values are exact in fp32."""
    layer = Layer(n=8, k=32, group_size=32, dtype=dtype, zero_point=False)
    kind = TORCH_DTYPES[dtype]
    q = torch.full((8, 32), 8, dtype=torch.uint8)
    q[:, :2] = 9
    packed = pack(QuantizedWeight(layer, q, torch.ones(1, 8, dtype=kind), None), "cpu")
    generator = torch.Generator().manual_seed(5)
    x = torch.zeros(4096, 32, dtype=kind)
    size = torch.randint(-24 if dtype == "fp16" else -100, 15, (4096, 1), generator=generator)
    x[:, :2] = (torch.randn(4096, 2, generator=generator, dtype=torch.float64) * 2.0**size).to(kind)
    expected = (x[:, 0].double() + x[:, 1].double()).float().to(kind)
    assert torch.equal(_run(_config(), packed, x)[:, 0], expected)


@pytest.mark.parametrize(
    ("split_k", "unpacks_m"), [(1, (0,)), (2, (0,)), (4, (0,)), (8, (0,)), (1, (256, 2))]
)
def test_bits_repeat_and_depend_on_split_k_and_unpacking_only(split_k: int, unpacks_m: tuple[int]) -> None:
    layer = Layer(n=136, k=1024, group_size=64, dtype="bf16")
    weight, x, _ = _sample(layer, 9)
    packed = pack(weight, "cpu")
    for tokens in (x, x[:1]):
        first = _run(_config(64, split_k, 1, unpacks_m[0]), packed, tokens)
        for tile_n, threads, unpack_m in product((16, 32, 64, 128), (1, 2, 4), unpacks_m):
            for _ in range(5):
                assert torch.equal(_run(_config(tile_n, split_k, threads, unpack_m), packed, tokens), first)
    first = _run(_config(64, split_k, 1, unpacks_m[0]), packed, x)
    for i in range(7):
        assert torch.equal(
            _run(_config(64, split_k, 2, unpacks_m[0]), packed, x[i : i + 2]), first[i : i + 2]
        )


def test_calls_from_several_threads_at_once() -> None:
    samples = [
        _sample(Layer(n=8 * (9 + i), k=512, dtype=DTYPES[i % 3]), m=1 + 3 * i, seed=i) for i in range(6)
    ]
    packed = [pack(weight, "cpu") for weight, _, _ in samples]
    configs = [_config(32, 1 + i % 2, 1 + i, 4 * (i % 2 == 0)) for i in range(6)]
    expected = [_run(config, p, x) for config, p, (_, x, _) in zip(configs, packed, samples, strict=True)]

    def repeat(i: int) -> bool:
        return all(torch.equal(_run(configs[i], packed[i], samples[i][1]), expected[i]) for _ in range(200))

    with ThreadPoolExecutor(6) as executor:
        assert all(executor.map(repeat, range(6)))


def test_a_forked_child_has_threads_of_its_own() -> None:
    """Forks while another thread is inside a call, so that the pool's lock is held at the fork."""
    layer = Layer(n=512, k=512)
    weight, x, _ = _sample(layer, 4)
    packed = pack(weight, "cpu")
    expected = _run(_config(32), packed, x)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            _run(_config(32), packed, x)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        statuses = []
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                os._exit(0 if torch.equal(_run(_config(32), packed, x), expected) else 1)
            statuses.append(os.waitpid(child, 0)[1])
    finally:
        stop.set()
        worker.join()
    assert statuses == [0] * 10
    assert torch.equal(_run(_config(32), packed, x), expected)


@pytest.mark.parametrize("cores", [1, 2, 12, 64])
@pytest.mark.parametrize("n", [8, 136, 4096])
def test_space_is_small_valid_and_holds_the_default(n: int, cores: int) -> None:
    device = replace(cpu_device(), cores=cores)
    for m, group_size in product((1, 16, 4096), (32, 128, -1)):
        problem = Problem(Layer(n=n, k=4096, group_size=group_size), m)
        configs = FAMILY.space(problem, device)
        assert len(set(configs)) == len(configs) <= 40
        assert FAMILY.default(problem, device) in configs
        assert all(FAMILY.reject(config, problem, device) is None for config in configs)


def test_every_config_of_a_space_is_right() -> None:
    device = replace(cpu_device(), cores=6)
    problem = Problem(Layer(n=136, k=4096, group_size=32, dtype="fp32"), 16)
    weight, x, _ = _sample(problem.layer, problem.m)
    packed = pack(weight, "cpu")
    configs = FAMILY.space(problem, device)
    assert {config["split_k"] for config in configs} == {1, 2, 4, 8}
    assert {config["unpack_m"] for config in configs} == {0, 256}
    expected = _Expected(weight, x)
    for config in configs:
        expected.check(_run(config, packed, x))


@pytest.mark.parametrize(
    ("config", "m", "reason"),
    [
        ("cpu:tile_n=64,split_k=1", 1, "its tunables are"),
        ("cpu:tile_n=48,split_k=1,unpack_m=0,threads=1", 1, "tile_n=48"),
        ("cpu:tile_n=64,split_k=3,unpack_m=0,threads=1", 1, "split_k=3"),
        ("cpu:tile_n=64,split_k=1,unpack_m=0,threads=3", 1, "threads=3"),
        ("cpu:tile_n=64,split_k=4,unpack_m=0,threads=4", 1, "there are 2 along k"),
        ("cpu:tile_n=64,split_k=2,unpack_m=0,threads=4", 128, "above m=64"),
        ("cpu:tile_n=16,split_k=2,unpack_m=0,threads=4", 1, "not needed"),
        ("cpu:tile_n=64,split_k=1,unpack_m=0,threads=4", 16, "share 3 tasks"),
        ("cpu:tile_n=32,split_k=1,unpack_m=0,threads=4", 1, "less than waking it costs"),
        ("cpu:tile_n=64,split_k=1,unpack_m=64,threads=1", 128, "unpack_m=64 is not one of"),
        ("cpu:tile_n=32,split_k=2,unpack_m=256,threads=4", 16, "is for many tokens"),
    ],
)
def test_reject_says_why(config: str, m: int, reason: str) -> None:
    device = replace(cpu_device(), cores=4)
    found = FAMILY.reject(Config.parse(config), Problem(Layer(n=136, k=256), m), device)
    assert found is not None
    assert reason in found


def test_run_refuses_tensors_that_are_not_the_layers() -> None:
    layer = Layer(n=64, k=128)
    weight, x, bias = _sample(layer, 2)
    packed = pack(weight, "cpu")
    plan = FAMILY.plan(_config(), layer, cpu_device(), None)
    out = torch.empty(2, 64, dtype=torch.float16)
    with pytest.raises(LayerError, match=r"x is torch\.float32"):
        plan.run(x.float(), packed, None, out, None)
    with pytest.raises(LayerError, match=r"x is .*\[2, 64\]"):
        plan.run(x[:, :64].contiguous(), packed, None, out, None)
    with pytest.raises(LayerError, match="strides"):
        plan.run(torch.cat((x, x), dim=1)[:, ::2], packed, None, out, None)
    with pytest.raises(LayerError, match="out is"):
        plan.run(x, packed, None, out.T.contiguous(), None)
    with pytest.raises(LayerError, match="bias is"):
        plan.run(x, packed, bias[:8], out, None)
    with pytest.raises(LayerError, match="the weight is packed for cpu"):
        plan.run(x, pack(_sample(Layer(n=72, k=128), 1)[0], "cpu"), None, out, None)


def _with_arch(arch: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AUTOTUNE_CPU_ARCH": arch}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.skipif("AUTOTUNE_CPU_ARCH" in os.environ, reason="already runs on a chosen instruction set")
@pytest.mark.parametrize("arch", ARCHS[1:])
def test_lesser_instruction_sets(arch: str) -> None:
    if ARCHS.index(arch) <= ARCHS.index(_C.cpu_arch()):
        pytest.skip(f"this CPU's best is {_C.cpu_arch()}")
    asked = _with_arch(arch, "-c", "from autotune import _C; print(_C.cpu_arch())")
    assert asked.stdout.strip() == arch
    again = _with_arch(arch, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", "not space", __file__)
    assert again.returncode == 0, again.stdout[-4000:]


def test_an_unknown_instruction_set_is_named() -> None:
    asked = _with_arch("x86_64_sse9", "-c", "from autotune.values.device import cpu_device; cpu_device()")
    assert "DeviceError: AUTOTUNE_CPU_ARCH=x86_64_sse9 is not one of" in asked.stderr
