"""Family `dequant_matmul` where cuBLASLt multiplies: sizes that take turns, chunks, bias, threads."""

import threading

import pytest
import torch

from autotune.bench.operands import Operands
from autotune.families.dequant_matmul import FAMILY
from autotune.families.workspace import workspace
from autotune.jit import compiler
from autotune.layouts import dequantize
from autotune.values.config import Config
from autotune.values.device import find_device
from autotune.values.layer import Layer

pytestmark = pytest.mark.gpu

SMALL, CHUNKED = Layer(1032, 520, group_size=520), Layer(33000, 1024, dtype="bf16")
LARGEST_ERROR = {"fp16": 1e-3, "bf16": 6e-3}


class Product:
    """A layer's weight, and a plan of the smallest chunks."""

    def __init__(self, layer):
        self.layer, device = layer, find_device("cuda")
        self.operands = Operands.random(layer, device)
        self.w = dequantize(self.operands.weight).double()
        config = Config.of("dequant_matmul", chunk_mb=64)
        cubin = compiler.build(FAMILY.unit(config, layer, device))
        self.plan = FAMILY.plan(config, layer, device, cubin)
        self.dtype = self.operands.weight.scales.dtype

    def tokens(self, m, seed=0):
        return self.operands.tokens(m, seed)

    def bias(self, seed):
        generator = torch.Generator("cuda").manual_seed(seed)
        return torch.randn(self.layer.n, device="cuda", generator=generator).to(self.dtype)

    def run(self, x, bias=None, out=None):
        out = x.new_full((len(x), self.layer.n), torch.nan) if out is None else out
        scratch = workspace(x.device, self.plan.workspace_bytes(len(x)))
        self.plan.run(x, self.operands.copies[0], bias, out, scratch)
        return out

    def error(self, out, x, bias=None):
        want = x.double() @ self.w.T + (0 if bias is None else bias.double())
        return float((out.double() - want).norm() / want.norm()) / LARGEST_ERROR[self.layer.dtype]


@pytest.fixture(scope="module")
def small():
    return Product(SMALL)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("m", [64, 300, 1023])
def test_chunks_are_parts_of_one_result(m, with_bias):
    product = Product(CHUNKED)
    x, bias = product.tokens(m), product.bias(1) if with_bias else None
    out = product.run(x, bias)
    assert product.error(out, x, bias) < 1
    assert torch.equal(product.run(x, bias), out)


def test_more_sizes_than_are_kept_take_turns_and_addresses_need_16_bytes_only(small):
    everything, bias = small.tokens(200), small.bias(1)
    for _ in range(2):
        for start in range(1, 70):
            x = everything[start : 3 * start]
            assert small.error(small.run(x, bias), x, bias) < 1


def test_every_number_of_tokens_is_right():
    product = Product(Layer(4096, 4096))
    everything = product.tokens(1100)
    wrong = [m for m in range(1, 1101) if product.error(product.run(everything[:m]), everything[:m]) >= 1]
    assert not wrong


def test_a_captured_call_reads_its_own_bias(small):
    x, bias, other = small.tokens(64), small.bias(1), small.bias(2)
    out = small.run(x, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        small.run(x, bias, out)
    scrap = small.run(x, other)
    out.fill_(torch.nan)
    graph.replay()
    assert small.error(out, x, bias) < 1
    assert small.error(scrap, x, other) < 1


def test_threads_share_a_plan(small):
    errors = []

    def work(seed):
        with torch.cuda.stream(torch.cuda.Stream()):
            x, bias = small.tokens(40 + seed, seed), small.bias(seed)
            errors.extend(small.error(small.run(x, bias), x, bias) for _ in range(20))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 80
    assert max(errors) < 1
