"""Every checkpoint format, value by value, against packers that put one nibble after another."""

from __future__ import annotations

from dataclasses import replace

import packers
import pytest
import torch
from runtime_tools import assert_same, weight_of

from autotune.formats import TensorScheme, layer_of, names_of, read
from autotune.layouts import QuantizedWeight
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.errors import FormatError, LayerError
from autotune.values.layer import Layer

PACK = {
    "awq_gemm": packers.awq_gemm,
    "awq_gemv": packers.awq_gemv,
    "awq_gemv_fast": packers.awq_gemv_fast,
    "compressed_tensors": packers.compressed_tensors,
    "gptq": packers.gptq,
    "marlin": packers.marlin,
}
# n, k, group_size: every group size, one group of all k, odd numbers of blocks, more groups than words hold.
ANY = [(8, 32, 32), (40, 96, 32), (24, 192, 64), (16, 384, 128), (72, 136, -1), (8, 1376, 32), (16, 1088, 64)]
SHAPES = {
    "awq_gemm": ANY,
    "awq_gemv": ANY,
    "gptq": ANY,
    "compressed_tensors": ANY,
    "awq_gemv_fast": [(8, 64, 32), (40, 192, 64), (16, 384, 128), (24, 320, -1), (8, 1152, 32)],
    "marlin": [(64, 32, 32), (192, 192, 64), (128, 384, 128), (64, 48, -1), (128, 1376, 32)],
}
CASES = [(name, *shape) for name, shapes in SHAPES.items() for shape in shapes]


def scheme_of(name: str, layer: Layer) -> TensorScheme:
    return TensorScheme(name, layer.group_size, zero_point=layer.zero_point, minus_one=name == "gptq")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize(("name", "n", "k", "group_size"), CASES)
def test_what_was_packed_is_read(
    name: str, n: int, k: int, group_size: int, zero_point: bool, dtype: str
) -> None:
    weight = weight_of(Layer(n, k, group_size=group_size, dtype=dtype, zero_point=zero_point), seed=n + k)
    tensors, scheme = PACK[name](weight), scheme_of(name, weight.layer)
    assert set(tensors) <= set(names_of(scheme))
    assert layer_of({key: tensor.to("meta") for key, tensor in tensors.items()}, scheme) == weight.layer
    linear = read(tensors, scheme)
    assert linear.perm is None
    assert_same(linear.weight, weight)


@pytest.mark.parametrize("name", PACK)
def test_strided_tensors_are_read_as_they_look(name: str) -> None:
    weight = weight_of(Layer(64, 128, group_size=64))
    tensors = {
        key: tensor.T.contiguous().T if tensor.dim() == 2 else tensor
        for key, tensor in PACK[name](weight).items()
    }
    assert_same(read(tensors, scheme_of(name, weight.layer)).weight, weight)


@pytest.mark.parametrize("name", PACK)
def test_scales_become_what_the_model_computes_in(name: str) -> None:
    weight = weight_of(Layer(64, 128, group_size=64))
    scheme = replace(scheme_of(name, weight.layer), dtype=torch.bfloat16)
    tensors = PACK[name](weight)
    assert layer_of(tensors, scheme) == Layer(64, 128, group_size=64, dtype="bf16")
    linear = read(tensors, scheme)
    expected = QuantizedWeight(
        Layer(64, 128, group_size=64, dtype="bf16"), weight.q, weight.scales.bfloat16(), weight.zeros
    )
    assert_same(linear.weight, expected)


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize("name", ["gptq", "compressed_tensors"])
@pytest.mark.parametrize(("n", "k", "group_size"), [(16, 96, 32), (8, 192, 64), (24, 256, 128)])
def test_columns_of_mixed_groups_are_sorted(
    name: str, n: int, k: int, group_size: int, zero_point: bool
) -> None:
    weight = weight_of(Layer(n, k, group_size=group_size, zero_point=zero_point))
    g_idx = packers.shuffled_groups(k, group_size)
    linear = read(PACK[name](weight, g_idx), replace(scheme_of(name, weight.layer), desc_act=True))
    assert_same(linear.weight, weight)
    assert linear.perm is not None
    assert linear.perm.dtype == torch.int32
    assert sorted(linear.perm.tolist()) == list(range(k))
    assert [int(g_idx[i]) for i in linear.perm] == [i // group_size for i in range(k)]


@pytest.mark.parametrize("zero", range(16))
def test_gptq_v1_stores_one_less_in_each_nibble_and_v2_does_not(zero: int) -> None:
    weight = weight_of(Layer(8, 32, group_size=32))
    same = replace(weight, zeros=torch.full_like(weight.zeros, zero))
    for minus_one in (True, False):
        scheme = TensorScheme("gptq", 32, minus_one=minus_one)
        assert_same(read(packers.gptq(same, None, minus_one), scheme).weight, same)


@pytest.mark.parametrize("stored_minus_one", [True, False])
@pytest.mark.parametrize("minus_one", [True, False])
def test_symmetric_gptq_is_read_whatever_version_it_claims(minus_one: bool, stored_minus_one: bool) -> None:
    weight = weight_of(Layer(8, 64, group_size=32, zero_point=False))
    tensors = packers.gptq(weight, None, stored_minus_one)
    assert_same(read(tensors, TensorScheme("gptq", 32, zero_point=False, minus_one=minus_one)).weight, weight)


@pytest.mark.parametrize("name", ["awq_gemm", "awq_gemv", "awq_gemv_fast", "gptq"])
def test_zeros_of_a_symmetric_checkpoint_are_checked(name: str) -> None:
    weight = weight_of(Layer(64, 128, group_size=64))
    with pytest.raises(FormatError, match="differ from 8"):
        read(PACK[name](weight), TensorScheme(name, 64, zero_point=False))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_scaled_zeros_are_recovered_for_every_scale(dtype: str) -> None:
    """Whatever the rounding of -s z, among normal and subnormal scales and 0, z comes back."""
    layer = Layer(512, 128, group_size=64, dtype=dtype)
    bits = torch.randint(0, 0x7000, (2, 512), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    bits[0, 0] = 0
    scales = bits.view(TORCH_DTYPES[dtype])
    scales = torch.where(scales.float() * 15 < torch.finfo(scales.dtype).max, scales, 0.5)
    weight = weight_of(layer)
    zeros = torch.where(scales == 0, 0, weight.zeros).to(torch.uint8)
    weight = QuantizedWeight(layer, weight.q, scales, zeros)
    assert_same(read(packers.awq_gemv_fast(weight), TensorScheme("awq_gemv_fast", 64)).weight, weight)


def test_zeros_that_are_no_whole_numbers_are_refused() -> None:
    tensors = packers.awq_gemv_fast(weight_of(Layer(8, 64, group_size=64)))
    for offset, words in ((0.25, "none of 0..15"), (20, "none of 0..15")):
        moved = tensors["scaled_zeros"] - (offset * tensors["scales"].float()).half()
        with pytest.raises(FormatError, match=words):
            read({**tensors, "scaled_zeros": moved}, TensorScheme("awq_gemv_fast", 64))


def test_autogptq_names_of_marlin_tensors_are_known() -> None:
    weight = weight_of(Layer(64, 128, group_size=64, zero_point=False))
    tensors = packers.marlin(weight)
    renamed = {"B": tensors["qweight"], "s": tensors["scales"]}
    assert_same(read(renamed, TensorScheme("marlin", 64, zero_point=False)).weight, weight)


def test_a_g_idx_that_was_never_filled_in_means_nothing() -> None:
    weight = weight_of(Layer(8, 64, group_size=32))
    tensors = packers.compressed_tensors(weight)
    tensors["weight_g_idx"] = torch.full((64,), -1, dtype=torch.int32)
    assert read(tensors, TensorScheme("compressed_tensors", 32)).perm is None


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("awq_gemv", {"qzeros": None}, ["no tensor qzeros", "qweight, scales"]),
        ("awq_gemv", {"scales": torch.ones(64, 8).half()}, ["scales", "[64, 8]", "[64, 16]"]),
        ("awq_gemv", {"qweight": torch.zeros(64, 16)}, ["qweight", "float32", "int32", "[n, k/8]"]),
        (
            "awq_gemv_fast",
            {"scaled_zeros": torch.ones(2, 64).half()},
            ["scaled_zeros", "[2, 64]", "[16, 64]"],
        ),
        ("awq_gemv_fast", {"qweight": torch.zeros(16, 128, dtype=torch.int32)}, ["int32", "int16"]),
        ("gptq", {"qweight": torch.zeros(2, 16, 64, dtype=torch.int32)}, ["[2, 16, 64]", "[k/8, n]"]),
        ("gptq", {"g_idx": torch.zeros(128, dtype=torch.int32)}, ["groups 0 to 0", "0 to 1", "64 columns"]),
        ("gptq", {"g_idx": torch.zeros(64, dtype=torch.int32)}, ["g_idx", "[64]", "[128]"]),
        ("gptq", {"scales": torch.ones(2, 64, dtype=torch.float64)}, ["scales", "float64", "float16"]),
        ("gptq", {"scales": torch.full((2, 64), torch.inf).half()}, ["128 of 128 scales", "infinite"]),
        ("compressed_tensors", {"weight_zero_point": None}, ["no tensor weight_zero_point"]),
        ("compressed_tensors", {"weight_shape": torch.tensor([64, 64])}, ["[64, 64]", "[64, 128]"]),
        ("compressed_tensors", {"weight_scale": None}, ["no tensor weight_scale"]),
        ("marlin", {"qzeros": torch.zeros(2, 4, dtype=torch.int32)}, ["qzeros", "[2, 4]", "[2, 8]"]),
        ("marlin", {"qweight": None}, ["no tensor qweight"]),
    ],
)
def test_wrong_tensors_are_named(name: str, change: dict[str, torch.Tensor | None], words: list[str]) -> None:
    tensors = {**PACK[name](weight_of(Layer(64, 128, group_size=64))), **change}
    with pytest.raises(FormatError) as caught:
        read({key: value for key, value in tensors.items() if value is not None}, TensorScheme(name, 64))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize(("group_size", "words"), [(48, "group_size=48"), (128, "k=192 is not a multiple")])
def test_a_group_size_that_does_not_fit_is_named(name: str, group_size: int, words: str) -> None:
    tensors = PACK[name](weight_of(Layer(64, 192, group_size=64)))
    with pytest.raises(LayerError, match=words):
        layer_of(tensors, TensorScheme(name, group_size))


def test_desc_act_without_g_idx_is_refused() -> None:
    tensors = packers.gptq(weight_of(Layer(8, 64, group_size=32)))
    del tensors["g_idx"]
    with pytest.raises(FormatError, match="no tensor g_idx"):
        read(tensors, TensorScheme("gptq", 32, minus_one=True, desc_act=True))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_other_numbers_of_bits_are_refused(bits: int) -> None:
    with pytest.raises(FormatError, match=f"bits={bits}; only 4-bit"):
        TensorScheme("gptq", 128, bits)
