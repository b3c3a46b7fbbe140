"""The op under torch's machinery on a GPU: opcheck, compile with graphs, autocast, threads with streams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from runtime_tools import assert_is_linear, splitting_lookup, tokens_of, weight_of

from autotune.records.lookup import Lookup
from autotune.records.misses import REPLAYS, read
from autotune.runtime.linear import Int4Linear
from autotune.runtime.op import int4_linear
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.device import find_device
from autotune.values.layer import Layer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:no config was measured")]

LAYER = Layer(1032, 2048)


@pytest.fixture
def split(tmp_path: Path) -> Lookup:
    return splitting_lookup(LAYER, find_device("cuda"), tmp_path)


def cuda_tokens(m: int, layer: Layer = LAYER) -> torch.Tensor:
    return tokens_of((m, layer.k), TORCH_DTYPES[layer.dtype], m, "cuda")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("zero_point", [True, False])
def test_the_op_passes_opcheck(dtype: str, zero_point: bool) -> None:
    layer = Layer(72, 128, group_size=64, dtype=dtype, zero_point=zero_point)
    bias = torch.ones(layer.n, device="cuda")
    linear = Int4Linear.from_quantized(weight_of(layer, device="cuda"), bias)
    held = (linear.qweight, linear.scales, linear.zeros, linear.bias, linear.plans.handle)
    for m in (0, 1, 17, 300):
        torch.library.opcheck(int4_linear, (cuda_tokens(m, layer), *held))


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_runs_the_kernel_of_each_m(split: Lookup, mode: str) -> None:
    """`reduce-overhead` replays graphs that inductor captured, in memory that no workspace may keep.

    A graph of few tokens is replayed after those of more have taken a larger workspace.
    """
    pytest.importorskip("triton")
    weight = weight_of(LAYER, device="cuda")
    linear = Int4Linear.from_quantized(weight, lookup=split).eval()
    compiled = torch.compile(lambda x: (linear(x * 2), linear(x + 1)), mode=mode, fullgraph=True)
    with torch.inference_mode():
        for m in (1, 16, 300, 16, 1):
            x = cuda_tokens(m)
            for _ in range(4):
                torch.compiler.cudagraph_mark_step_begin()
                doubled, more = compiled(x)
                eager = linear(x)
                assert_is_linear(doubled, weight, x * 2)
                assert_is_linear(more, weight, x + 1)
                assert_is_linear(eager, weight, x)


def test_autocast_gives_x_the_dtype_of_the_layer() -> None:
    weight = weight_of(LAYER, device="cuda")
    linear = Int4Linear.from_quantized(weight).eval()
    x = tokens_of((3, LAYER.k), torch.float32, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert_is_linear(linear(x), weight, x.half())


def test_threads_with_streams_of_their_own_share_a_linear(split: Lookup) -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER, device="cuda"), lookup=split).eval()
    inputs = [cuda_tokens(m) for m in (1, 2, 16, 300)]
    expected = [linear(x) for x in inputs]
    torch.cuda.synchronize()

    def calls(index: int) -> bool:
        x, want = inputs[index % 4], expected[index % 4]
        with torch.cuda.stream(torch.cuda.Stream()):
            results = [linear(x) for _ in range(50)]
            return all(torch.equal(out, want) for out in results)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(calls, range(16)))


def test_a_captured_call_is_noted_as_its_replays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "other.db"))
    layer = Layer(520, 1000, group_size=1000)  # of which nothing is shipped
    lookup = Lookup(find_device("cuda"), tmp_path / "other.db")
    linear = Int4Linear.from_quantized(weight_of(layer, device="cuda"), lookup=lookup)
    x = cuda_tokens(3, layer)
    linear(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        linear(x)
    calls = [miss.calls for miss in read(tmp_path / "other.db.misses.jsonl") if miss.problem.m == 4]
    assert sum(calls) == 1 + REPLAYS
