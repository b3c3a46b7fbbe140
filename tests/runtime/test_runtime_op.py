"""The op under torch's machinery: opcheck, compile, export, autocast, copies, threads."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from runtime_tools import assert_is_linear, tokens_of, weight_of

from autotune.layouts import QuantizedWeight
from autotune.runtime.linear import Int4Linear
from autotune.runtime.op import int4_linear
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.errors import LayerError
from autotune.values.layer import Layer

LAYER = Layer(136, 256, group_size=64)


class Block(torch.nn.Module):
    """Two int4 linears between what a compiler fuses."""

    def __init__(self, up: QuantizedWeight, down: QuantizedWeight) -> None:
        super().__init__()
        self.up, self.down = Int4Linear.from_quantized(up), Int4Linear.from_quantized(down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.silu(self.up(x)))


def block(seed: int = 0) -> Block:
    return Block(weight_of(Layer(512, 256), seed), weight_of(Layer(256, 512), seed)).eval()


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_op_passes_opcheck(dtype: str, zero_point: bool, with_bias: bool) -> None:
    layer = Layer(72, 128, group_size=64, dtype=dtype, zero_point=zero_point)
    linear = Int4Linear.from_quantized(weight_of(layer), torch.ones(layer.n) if with_bias else None)
    held = (linear.qweight, linear.scales, linear.zeros, linear.bias, linear.plans.handle)
    for m in (0, 1, 17):
        torch.library.opcheck(int4_linear, (tokens_of((m, layer.k), TORCH_DTYPES[dtype]), *held))
    strided = tokens_of((layer.k, 3), TORCH_DTYPES[dtype]).T
    torch.library.opcheck(int4_linear, (strided, *held))


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")),
    ],
)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_compiled_block_is_one_graph_for_every_m(backend: str, context: type) -> None:
    model = block()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    with context():
        for m in (2, 17, 65, 300):
            x = tokens_of((m, 256), torch.float16, m)
            torch.testing.assert_close(compiled(x), model(x), rtol=2e-3, atol=2e-3)
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled(tokens_of((1000, 256), torch.float16))
        for m in (0, 1):
            x = tokens_of((m, 256), torch.float16, m)
            torch.testing.assert_close(compiled(x), model(x), rtol=2e-3, atol=2e-3)


@pytest.mark.usefixtures("_fresh_compiler")
def test_equal_layers_share_one_graph() -> None:
    """What differs between the linears of a layer is tensors, so a model's blocks compile once."""
    one, other = block(1), block(2)
    step = torch.compile(lambda model, x: model(x), backend="aot_eager", fullgraph=True)
    x = tokens_of((4, 256), torch.float16)
    with torch.no_grad():
        assert torch.equal(step(one, x), one(x))
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(step(other, x), other(x))


def test_an_exported_program_runs_any_m() -> None:
    model = block()
    tokens = torch.export.Dim("tokens", min=2, max=512)
    program = torch.export.export(model, (tokens_of((4, 256), torch.float16),), dynamic_shapes=({0: tokens},))
    x = tokens_of((33, 256), torch.float16)
    torch.testing.assert_close(program.module()(x), model(x), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("given", TORCH_DTYPES.values())
def test_autocast_gives_x_the_dtype_of_the_layer(dtype: str, given: torch.dtype) -> None:
    """Not that of autocast: scales are never rounded again."""
    layer = Layer(136, 256, group_size=64, dtype=dtype)
    weight = weight_of(layer)
    linear = Int4Linear.from_quantized(weight).eval()
    x = tokens_of((3, 256), torch.float32).to(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear(x)
    assert_is_linear(out, weight, x.to(TORCH_DTYPES[dtype]))
    if given != TORCH_DTYPES[dtype]:
        with pytest.raises(LayerError, match=r"pass x.to"):
            linear(x)


def test_autocast_casts_nothing_that_a_model_does_not_compute_in() -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for x in (torch.zeros(1, 256, dtype=torch.float64), torch.zeros(1, 256, dtype=torch.int64)):
            with pytest.raises(LayerError, match=str(x.dtype)):
                linear(x)


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_block_casts_under_autocast_too() -> None:
    model = block()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = tokens_of((5, 256), torch.float32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x), model(x), rtol=2e-3, atol=2e-3)


def test_a_fake_x_gives_a_fake_result() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = block()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(tokens_of((7, 3, 256), torch.float16))
        out = model.up(x)
        with pytest.raises(LayerError, match=r"expected \[\.\.\., 256\]"):
            model.up(x[..., :128])
    assert (out.shape, out.dtype) == ((7, 3, 512), torch.float16)


@pytest.mark.parametrize("with_perm", [True, False])
def test_a_pickled_linear_computes_the_same(with_perm: bool) -> None:
    perm = torch.arange(255, -1, -1, dtype=torch.int32) if with_perm else None
    linear = Int4Linear.from_quantized(weight_of(LAYER), torch.ones(LAYER.n), perm=perm).eval()
    x = tokens_of((3, 256), torch.float16)
    twin = pickle.loads(pickle.dumps(linear))
    assert torch.equal(twin(x), linear(x))
    assert torch.equal(copy.deepcopy(twin)(x), linear(x))


def _output_elsewhere(pickled: bytes, x: torch.Tensor) -> torch.Tensor:
    other = Int4Linear.from_quantized(weight_of(Layer(72, 256, group_size=32)))
    linear = pickle.loads(pickled)
    assert linear.plans.layer != other.plans.layer
    return linear(x)


def test_a_pickled_linear_computes_the_same_in_another_process() -> None:
    """Where its plans' handle names those of another layer."""
    weight = weight_of(LAYER)
    linear = Int4Linear.from_quantized(weight).eval()
    x = tokens_of((3, 256), torch.float16)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        out = pool.submit(_output_elsewhere, pickle.dumps(linear), x).result()
    assert_is_linear(out, weight, x)


def test_threads_share_a_linear() -> None:
    linear = Int4Linear.from_quantized(weight_of(LAYER)).eval()
    inputs = [tokens_of((m, 256), torch.float16, m) for m in (1, 2, 9, 33)]
    expected = [linear(x) for x in inputs]

    def calls(index: int) -> bool:
        x, want = inputs[index % 4], expected[index % 4]
        return all(torch.equal(linear(x), want) for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(calls, range(16)))
