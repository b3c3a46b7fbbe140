"""The op reads no tensor that is not what its kernel takes for it, however it came to be so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from runtime_tools import assert_is_linear, tokens_of, weight_of
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune.layouts import pack
from autotune.layouts.packed import form_of
from autotune.runtime.linear import Int4Linear
from autotune.runtime.op import int4_linear
from autotune.values.errors import FormatError, LayerError
from autotune.values.layer import Layer

LAYER = Layer(136, 256, group_size=64)
X = tokens_of((3, LAYER.k), torch.float16)


@pytest.fixture(params=[True, False], ids=["called before", "never called"])
def linear(request: pytest.FixtureRequest) -> Int4Linear:
    """What was found right once is looked at again when it changes."""
    made = Int4Linear.from_quantized(weight_of(LAYER), torch.ones(LAYER.n)).eval()
    if request.param:
        made(X)
    return made


Change = Callable[[Int4Linear], object]


def replace(
    name: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> Callable[[Int4Linear], object]:
    return lambda linear: setattr(linear, name, change(getattr(linear, name)))


def exchange(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Other memory or another view of it under the same object."""
    return lambda linear: setattr(getattr(linear, name), "data", change(getattr(linear, name)))


def assign(layer: Layer) -> Change:
    """The state of another layer, by what only a caller of the buffers' own dictionary can do."""
    return lambda linear: linear._buffers.update(
        Int4Linear.from_quantized(weight_of(layer), torch.ones(layer.n, dtype=torch.float16))._buffers
    )


BROKEN = {
    "fewer rows": (replace("qweight", lambda old: old[:-1]), "qweight is torch.int32 .8, 32, 16., expected"),
    "flat": (replace("qweight", torch.Tensor.flatten), r"qweight is torch.int32 \[4608\]"),
    "wider": (replace("qweight", torch.Tensor.long), "qweight is torch.int64"),
    "bytes": (replace("qweight", lambda old: old.view(torch.float32)), "qweight is torch.float32"),
    "strided": (
        replace("qweight", lambda old: torch.stack((old, old), -1)[..., 0]),
        r"qweight has strides .* qweight.contiguous\(\)",
    ),
    "a view in the same place": (
        replace("qweight", lambda old: old.as_strided(old.shape, (16, 0, 1))),
        "qweight has strides",
    ),
    "one scale for all": (replace("scales", lambda old: old[:1, :1].expand_as(old)), "scales has strides"),
    "scales in another dtype": (replace("scales", torch.Tensor.bfloat16), "scales is torch.bfloat16"),
    "scales read as another dtype": (
        exchange("scales", lambda old: old.view(torch.bfloat16)),
        "scales is torch.bfloat16",
    ),
    "scales of fewer groups": (replace("scales", lambda old: old[:, :1]), r"scales is .* expected .*4, 16"),
    "no zeros": (replace("zeros", lambda _: None), "zeros are missing"),
    "empty zeros": (replace("zeros", lambda old: old[:0]), r"zeros is torch.uint8 \[0, 4, 16\]"),
    "signed zeros": (replace("zeros", lambda old: old.view(torch.int8)), "zeros is torch.int8"),
    "short bias": (replace("bias", lambda old: old[:-8]), r"bias is torch.float16 \[128\], expected .*136"),
    "bias in another dtype": (replace("bias", torch.Tensor.float), "bias is torch.float32"),
    "strided bias": (replace("bias", lambda old: old.repeat(2)[::2]), "bias has strides"),
    "on meta": (replace("scales", lambda old: old.to("meta")), "x is on cpu, but scales is on meta"),
    "other memory": (exchange("qweight", lambda old: old[:, :16].clone()), r"qweight is .*\[9, 16, 16\]"),
    "another shape of the same memory": (
        exchange("qweight", lambda old: old.view(9, 16, 32)),
        r"qweight is .*\[9, 16, 32\]",
    ),
    "cut": (lambda linear: linear.qweight.resize_(9, 32, 8), r"qweight is .*\[9, 32, 8\]"),
    "emptied": (lambda linear: linear.scales.set_(), r"scales is torch.float16 \[0\]"),
    "another storage": (
        lambda linear: linear.zeros.set_(torch.zeros(4, dtype=torch.uint8)),
        r"zeros is torch.uint8 \[4\]",
    ),
    "freed": (
        lambda linear: linear.qweight.untyped_storage().resize_(0),
        "qweight needs 18432 bytes, but its storage has 0",
    ),
    "shrunk": (
        lambda linear: linear.qweight.untyped_storage().resize_(9000),
        "qweight needs 18432 bytes, but its storage has 9000",
    ),
    "another n": (assign(Layer(72, 256, group_size=64)), "qweight is .*, expected .* for n=136"),
    "another k": (assign(Layer(136, 128, group_size=64)), "qweight is .*, expected .* for n=136,k=256"),
    "another group size": (
        assign(Layer(136, 256, group_size=32)),
        "scales is .*, expected .* for .*group_size=64",
    ),
    "another dtype": (assign(Layer(136, 256, group_size=64, dtype="bf16")), "scales is torch.bfloat16"),
    "symmetric": (
        assign(Layer(136, 256, group_size=64, zero_point=False)),
        "zeros are missing",
    ),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_tensor_that_no_kernel_may_read_is_named(linear: Int4Linear, change: Change, words: str) -> None:
    change(linear)
    for _ in range(2):
        with pytest.raises(LayerError, match=words):
            linear(X)


def test_a_storage_that_shrinks_and_finds_its_old_address_is_too_small(linear: Int4Linear) -> None:
    """The allocator says whether it does; so what was noted of the old address is noted of the new."""
    linear(X)
    (noted,) = linear.plans.checked.values()
    storage, needed = linear.qweight.untyped_storage(), linear.qweight.nbytes
    storage.resize_(needed - 64)
    held = (linear.qweight, linear.scales, linear.zeros, linear.bias)
    linear.plans.note_checked(tuple(each.data_ptr() for each in held), noted)
    with pytest.raises(LayerError, match=f"qweight needs {needed} bytes, but its storage has {needed - 64}"):
        linear(X)


def test_a_replaced_weight_of_the_right_form_is_read(linear: Int4Linear) -> None:
    for seed in (1, 2):
        weight = weight_of(LAYER, seed)
        packed = pack(weight, "cpu")
        linear.qweight, linear.scales, linear.zeros, linear.bias = *packed.tensors, None
        assert_is_linear(linear(X), weight, X)


def test_a_storage_that_was_freed_and_filled_again_is_read(linear: Int4Linear) -> None:
    """As wrappers do that keep weights elsewhere between calls."""
    expected, kept = linear(X), linear.qweight.clone()
    storage = linear.qweight.untyped_storage()
    storage.resize_(0)
    with pytest.raises(LayerError, match="its storage has 0"):
        linear(X)
    storage.resize_(kept.nbytes)
    linear.qweight.copy_(kept)
    assert torch.equal(linear(X), expected)


def test_a_state_that_is_assigned_is_checked(linear: Int4Linear) -> None:
    weight = weight_of(LAYER, 3)
    state = Int4Linear.from_quantized(weight, torch.zeros(LAYER.n)).state_dict()
    linear.load_state_dict(state, assign=True)
    assert linear.qweight is state["qweight"]
    assert_is_linear(linear(X), weight, X)
    state["scales"] = state["scales"].double()
    linear.load_state_dict(state, assign=True)
    with pytest.raises(LayerError, match=r"scales is torch.float64"):
        linear(X)


def test_a_weight_without_zeros_or_bias_takes_none() -> None:
    weight = weight_of(Layer(136, 256, group_size=64, zero_point=False))
    linear = Int4Linear.from_quantized(weight)
    assert_is_linear(linear(X), weight, X)
    linear.zeros = torch.zeros(9, 4, 16, dtype=torch.uint8)
    with pytest.raises(LayerError, match="zeros are given"):
        linear(X)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "layer",
    [LAYER, Layer(72, 40, group_size=-1), Layer(64, 1376, group_size=32, dtype="bf16", zero_point=False)],
    ids=str,
)
def test_the_form_is_that_of_what_pack_makes(kind: str, layer: Layer) -> None:
    form, packed = form_of(layer, kind), pack(weight_of(layer), kind)
    bias = torch.zeros(layer.n, dtype=packed.scales.dtype)
    form.check(torch.device("cpu"), packed.qweight, packed.scales, packed.zeros, bias)
    with pytest.raises(LayerError, match="qweight"):
        form.check(torch.device("cpu"), packed.qweight[:0], packed.scales, packed.zeros, bias)


def test_tracing_checks_the_same(linear: Int4Linear) -> None:
    """A graph is traced once, with tensors that have no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(X)
        held = {name: mode.from_tensor(buffer) for name, buffer in linear.named_buffers()}

        def trace(**changed: torch.Tensor | None) -> torch.Tensor:
            given = held | changed
            tensors = (given[name] for name in ("qweight", "scales", "zeros", "bias"))
            return int4_linear(x, *tensors, linear.plans.handle)

        assert trace().shape == (3, LAYER.n)
        for name, wrong in (
            ("qweight", held["qweight"][:-1]),
            ("scales", held["scales"].bfloat16()),
            ("scales", held["scales"].transpose(0, 2).contiguous().transpose(0, 2)),
            ("zeros", None),
            ("bias", held["bias"][1:]),
        ):
            with pytest.raises(LayerError, match=name):
                trace(**{name: wrong})


def test_tensors_on_meta_are_checked_too(linear: Int4Linear) -> None:
    held = [buffer.to("meta") for buffer in (linear.qweight, linear.scales, linear.zeros, linear.bias)]
    x = X.to("meta")
    assert int4_linear(x, *held, linear.plans.handle).shape == (3, LAYER.n)
    with pytest.raises(LayerError, match="qweight is"):
        int4_linear(x, held[0][:-1], *held[1:], linear.plans.handle)
    with pytest.raises(LayerError, match="x is on meta, but qweight is on cpu"):
        int4_linear(x, linear.qweight, *held[1:], linear.plans.handle)


def test_an_order_of_columns_is_checked_where_it_is_set() -> None:
    reverse = torch.arange(LAYER.k - 1, -1, -1, dtype=torch.int32)
    weight = weight_of(LAYER)
    linear = Int4Linear.from_quantized(weight, perm=reverse.clone()).eval()
    outside = reverse.clone()
    outside[0] = LAYER.k
    twice = torch.zeros_like(reverse)
    for wrong in (outside, twice, reverse[1:], -reverse, reverse.float()):
        with pytest.raises(FormatError, match="expected each of 0 to 255 once"):
            linear.perm = wrong
    for assign in (True, False):
        with pytest.raises(RuntimeError, match="expected each of 0 to 255 once"):
            linear.load_state_dict({**linear.state_dict(), "perm": outside}, assign=assign)
    linear.perm = reverse.long()
    assert_is_linear(linear(X), weight, X.flip(-1))
    linear._buffers["perm"] = reverse[1:]
    with pytest.raises(FormatError, match=r"perm is \[255\], expected \[256\]"):
        linear(X)


@pytest.mark.gpu
def test_a_gpu_reads_vectors_that_are_aligned_and_written() -> None:
    layer = Layer(1032, 2048)
    weight = weight_of(layer, device="cuda")
    linear = Int4Linear.from_quantized(weight).eval()
    x = tokens_of((3, layer.k), torch.float16, device="cuda")
    right = linear.scales
    linear.scales = torch.cat((right.flatten()[:1], right.flatten()))[1:].view(right.shape)
    with pytest.raises(LayerError, match=r"scales starts at an address .* scales.clone\(\)"):
        linear(x)
    linear.scales = right
    expected = linear(x)
    for factor in (2.0, 0.5) * 20:
        linear.scales.mul_(factor)
        out = linear(x)
        torch.testing.assert_close(out, expected * 2 if factor == 2 else expected, rtol=2e-3, atol=2e-3)
    for tensor, words in ((linear.qweight.cpu(), "qweight is on cpu"), (right.cpu(), "scales is on cpu")):
        wrong = Int4Linear.from_quantized(weight).eval()
        setattr(wrong, words.partition(" ")[0], tensor)
        with pytest.raises(LayerError, match=words):
            wrong(x)
    with pytest.raises(LayerError, match="x is on cpu, but the weight is packed for cuda"):
        linear(x.cpu())
