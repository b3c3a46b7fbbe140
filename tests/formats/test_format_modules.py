"""Linears that other libraries loaded: found by their tensors, refused where those do not tell enough."""

from __future__ import annotations

import foreign
import packers
import pytest
import torch
from runtime_tools import assert_same, weight_of

from autotune.formats.modules import find, is_quantized
from autotune.values.errors import AutotuneError
from autotune.values.layer import Layer

# Square, and k = 8 n, where layouts have weights of the same shape; and one group of all k.
LAYERS = [
    Layer(128, 128, group_size=64),
    Layer(64, 512, group_size=64),
    Layer(64, 512, group_size=128),
    Layer(128, 64, group_size=32),
    Layer(128, 128, group_size=-1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("kind", foreign.MODULES)
def test_every_class_is_read(kind: str, layer: Layer) -> None:
    zero_point = kind not in foreign.SYMMETRIC
    weight = weight_of(Layer(layer.n, layer.k, group_size=layer.group_size, zero_point=zero_point))
    bias = torch.linspace(-1, 1, layer.n).half()
    module = foreign.MODULES[kind](weight, bias)
    assert is_quantized(module)
    found = find(module)
    assert found.layer == weight.layer
    linear = found.read("cpu")
    assert_same(linear.weight, weight)
    assert linear.perm is None
    assert found.bias is not None
    assert torch.equal(found.bias, bias)


@pytest.mark.parametrize(
    "kind",
    [
        "MarlinLinear before",
        "TorchLinear",
        "AutoGPTQ",
        "AwqGEMMLinear",
        "compressed-tensors",
        "WQLinear_Marlin",
        "auto-round",
        "auto-round zp",
    ],
)
def test_symmetric_weights_have_no_zeros(kind: str) -> None:
    weight = weight_of(Layer(128, 128, group_size=64, zero_point=False))
    assert_same(find(foreign.MODULES[kind](weight)).read("cpu").weight, weight)


@pytest.mark.parametrize(
    "kind", ["MarlinLinear before", "TorchLinear", "MarlinLinear after", "compressed-tensors"]
)
def test_desc_act_gives_an_order(kind: str) -> None:
    weight = weight_of(Layer(128, 256, group_size=64, zero_point=kind not in foreign.SYMMETRIC))
    g_idx = packers.shuffled_groups(256, 64)
    linear = find(foreign.MODULES[kind](weight, None, g_idx)).read("cpu")
    assert_same(linear.weight, weight)
    assert linear.perm is not None
    assert [int(g_idx[i]) for i in linear.perm] == [i // 64 for i in range(256)]


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize(
    "layer",
    [Layer(1376, 96, group_size=32), Layer(72, 320, group_size=64), Layer(136, 320, group_size=-1)],
    ids=str,
)
def test_marlin_tiles_lose_their_padding(layer: Layer, zero_point: bool) -> None:
    weight = weight_of(Layer(layer.n, layer.k, group_size=layer.group_size, zero_point=zero_point))
    bias = torch.linspace(-1, 1, layer.n).half()
    found = find(foreign.repacked_marlin("AwqMarlinLinear")(weight, bias))
    assert found.layer == weight.layer
    assert_same(found.read("cpu").weight, weight)
    assert found.bias is not None
    assert torch.equal(found.bias, bias)


def changed(kind: str = "TorchLinear", **attributes: object) -> torch.nn.Module:
    weight = weight_of(Layer(128, 256, group_size=64, zero_point=kind not in foreign.SYMMETRIC))
    module = foreign.MODULES[kind](weight)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def named(kind: str) -> torch.nn.Module:
    module = changed()
    module.__class__.__name__ = kind
    return module


def old_marlin() -> torch.nn.Module:
    module = changed("MarlinLinear after", bias=torch.ones(128).half())
    del module._marlin_tile_padding
    return module


def two_versions() -> torch.nn.Module:
    module = changed("TorchQuantLinear")
    module.qzero_format = lambda: 1
    return module


def elsewhere() -> torch.nn.Module:
    module = changed("auto-round")
    type(module).__module__ = "auto_round_extension.humming.qlinear_humming"
    return module


def eight_bits() -> torch.nn.Module:
    module = changed("compressed-tensors")
    module.weight_packed = torch.nn.Parameter(torch.zeros(128, 64, dtype=torch.int32), requires_grad=False)
    return module


def dense(weight: torch.Tensor) -> torch.nn.Module:
    return changed("compressed-tensors after", weight=torch.nn.Parameter(weight, requires_grad=False))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: changed(bits=8), "bits=8; only 4-bit"),
        (lambda: changed("WQLinear_GEMM", w_bit=3), "bits=3; only 4-bit"),
        (eight_bits, "bits=8; only 4-bit"),
        (
            lambda: dense(torch.ones(128, 256, dtype=torch.int8)),
            "no packed 4-bit weight: weight is torch.int8",
        ),
        (lambda: dense(torch.ones(128, 256).half()).half(), "4-bit number times their scale"),
        (lambda: changed(group_size=96), "group_size=96 is not one of"),
        (lambda: changed(in_features=192, group_size=128), "k=192 is not a multiple of group_size=128"),
        (lambda: changed(group_size=128), "no known layout of n=128, k=256, group_size=128"),
        (lambda: changed(out_features=64), "no known layout of n=64, k=256, group_size=64"),
        (lambda: changed("compressed-tensors", in_features=512), "bits=2"),
        (lambda: changed("compressed-tensors", out_features=64), "out_features=64, but its tensors say 128"),
        (lambda: changed("llm-awq WQLinear", in_features=512), "in_features=512, but its tensors say 256"),
        (lambda: changed(qweight=torch.zeros(2, 32, 128, dtype=torch.int32)), "[2, 32, 128]"),
        (lambda: changed(scales=None), "no tensor scales"),
        (lambda: changed(qzeros=None), "no tensor qzeros"),
        (lambda: changed("WQLinear_Exllama", q4=7), "shuffled in place by ExLlama"),
        (lambda: changed(q_handle=7), "shuffled in place by ExLlama"),
        (lambda: changed(adapter=object()), "has an adapter"),
        (lambda: changed(had_K=torch.ones(1)), "rotates x"),
        (lambda: changed(online_full_had=True), "rotates x"),
        (lambda: changed(planar=True), "planes of bits"),
        (lambda: named("MacheteLinear"), "MacheteLinear may have repacked"),
        (lambda: named("ParoLinear"), "ParoLinear rotates x"),
        (elsewhere, "whether its zeros are those of GPTQ v1 or v2"),
        (two_versions, "whether its zeros are those of GPTQ v1 or v2"),
        (old_marlin, "bias may be permuted; apply before post_init"),
        (lambda: changed(qweight=torch.zeros(32, 128, dtype=torch.int32, device="meta")), "meta device"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(make, words: str) -> None:
    module = make()
    assert is_quantized(module)
    with pytest.raises(AutotuneError) as caught:
        find(module).read("cpu")
    assert words in str(caught.value)


@pytest.mark.parametrize("module", [torch.nn.Linear(8, 8), torch.nn.Embedding(8, 8), torch.nn.Sequential()])
def test_other_modules_are_not_quantized(module: torch.nn.Module) -> None:
    assert not is_quantized(module)
