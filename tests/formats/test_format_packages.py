"""Tensors that the formats' own packages packed, against what those packages unpack."""

from __future__ import annotations

import packers
import pytest
import torch
from packages import package
from runtime_tools import assert_same

from autotune.formats import TensorScheme, Unpacked, detect, read
from autotune.formats.marlin import rows_in_order
from autotune.formats.modules import find
from autotune.layouts import dequantize, random_weight
from autotune.values.layer import Layer


def random(n: int, k: int) -> torch.Tensor:
    return torch.randn((n, k), generator=torch.Generator().manual_seed(n + k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("n", "k", "group_size"), [(16, 64, 32), (24, 192, 64), (64, 384, 128), (1376, 128, None)]
)
def test_compressed_tensors(
    n: int, k: int, group_size: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    compressors = package("compressed_tensors.compressors.pack_quantized.base")
    quantization = package("compressed_tensors.quantization")
    weights = quantization.QuantizationArgs(
        num_bits=4,
        type="int",
        symmetric=symmetric,
        strategy="channel" if group_size is None else "group",
        group_size=group_size,
    )
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    weight, groups = random(n, k).to(dtype), 1 if group_size is None else k // group_size
    scale = (weight.view(n, groups, -1).abs().amax(-1) / 6).to(dtype)
    zero = torch.zeros((n, groups), dtype=torch.int8)
    if not symmetric:
        zero = torch.randint(-8, 8, (n, groups), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    compressor = compressors.PackedQuantizationCompressor
    packed = compressor.compress({"weight": weight, "weight_scale": scale, "weight_zero_point": zero}, scheme)
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    config["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights.model_dump(mode="json")}}
    linear = read(packed, detect(config))
    assert linear.weight.layer.zero_point is not symmetric
    unpacked = compressor.decompress(packed, scheme)["weight"]
    assert torch.equal(dequantize(linear.weight).to(dtype), unpacked)


@pytest.mark.parametrize("desc_act", [True, False])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(
    ("n", "k", "group_size"), [(32, 64, 32), (64, 256, 64), (96, 384, 128), (32, 96, -1)]
)
def test_gptqmodel_gptq(n: int, k: int, group_size: int, sym: bool, desc_act: bool) -> None:
    qlinear = package("gptqmodel.nn_modules.qlinear.torch")
    groups = 1 if group_size == -1 else k // group_size
    kind = getattr(qlinear, "TorchLinear", None) or qlinear.TorchQuantLinear
    module = kind(bits=4, group_size=group_size, sym=sym, desc_act=desc_act, in_features=k, out_features=n)
    linear = torch.nn.Linear(k, n, bias=False, dtype=torch.float16)
    linear.weight.data = random(n, k).half()
    generator = torch.Generator().manual_seed(2)
    scales = (torch.rand((n, groups), generator=generator) + 0.5).half() / 4
    zeros = torch.full((n, groups), 8.0)
    if not sym:
        zeros = torch.randint(1, 16, (n, groups), generator=generator).float()
    g_idx = torch.arange(k, dtype=torch.int32) // (k // groups)
    if desc_act:
        g_idx = g_idx[torch.randperm(k, generator=generator)]
    module.pack(linear, scales, zeros, g_idx)
    tensors = {name: getattr(module, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    scheme = TensorScheme("gptq", group_size, zero_point=not sym, desc_act=desc_act)
    assert_gptq(read(tensors, scheme), module.dequantize_weight())


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptqmodel_zeros_of_0(version: str) -> None:
    """v1 as GPTQModel converts it on saving, against what it unpacked before."""
    qlinear = package("gptqmodel.nn_modules.qlinear.torch")
    kind = getattr(qlinear, "TorchLinear", None) or qlinear.TorchQuantLinear
    module = kind(bits=4, group_size=32, sym=False, desc_act=False, in_features=128, out_features=64)
    linear = torch.nn.Linear(128, 64, bias=False, dtype=torch.float16)
    linear.weight.data = random(64, 128).half()
    zeros = torch.randint(0, 4, (64, 4), generator=torch.Generator().manual_seed(7)).float()
    module.pack(linear, torch.full((64, 4), 0.25).half(), zeros, torch.arange(128, dtype=torch.int32) // 32)
    unpacked = module.dequantize_weight()
    if version == "gptq":
        config = package("gptqmodel").QuantizeConfig(bits=4)
        package("gptqmodel.utils.model").convert_gptq_v2_to_v1_format_module(module, config)
    tensors = {name: getattr(module, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    told = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": version}
    assert_gptq(read(tensors, detect({**told, "meta": {"quantizer": ["gptqmodel:7.7.0"]}})), unpacked)


@pytest.mark.parametrize(
    ("module", "packing"), [("qlinear_torch_zp", "auto_gptq"), ("qlinear_torch", "gptqmodel")]
)
@pytest.mark.parametrize("least", [0, 1])
def test_auto_round(module: str, packing: str, least: int) -> None:
    """Zeros of 0 too, which a version for v1 may have made 1 before it packed them."""
    kind = package(f"auto_round_extension.torch.{module}").QuantLinear
    packed = kind(4, 32, 128, 64, bias=False)
    packed.device = "cpu"
    generator = torch.Generator().manual_seed(8)
    zeros = torch.randint(least, 4, (64, 4), generator=generator)
    q = torch.randint(0, 16, (64, 128), generator=generator)
    linear = torch.nn.Linear(128, 64, bias=False)
    linear.weight.data = (q - zeros.repeat_interleave(32, 1)) * 0.25
    packed.pack(linear, torch.full((64, 4), 0.25), zeros.clone().float(), None, device="cpu")
    tensors = {name: getattr(packed, name) for name in ("qweight", "qzeros", "scales")}
    told = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False}
    weight = read(tensors, detect({**told, "packing_format": f"auto_round:{packing}"})).weight
    assert torch.equal(weight.q.long(), q)
    allowed = zeros.T if packing == "gptqmodel" else zeros.T.clamp(min=1)
    assert torch.equal(weight.zeros.long(), zeros.T) or torch.equal(weight.zeros.long(), allowed)


def assert_gptq(linear: Unpacked, unpacked: torch.Tensor) -> None:
    """What was read is the package's [k, n] weight, its columns back in the order of x."""
    weight = dequantize(linear.weight)
    if linear.perm is not None:
        weight = weight[:, torch.argsort(linear.perm)]
    assert torch.equal(weight.half(), unpacked.T)


@pytest.mark.parametrize(("n", "k", "group_size"), [(32, 64, 32), (64, 256, 64), (96, 384, 128)])
@pytest.mark.parametrize(
    ("kind", "module", "format_name"),
    [
        ("WQLinear_GEMM", "gemm", "awq_gemm"),
        ("WQLinear_GEMV", "gemv", "awq_gemv"),
        ("WQLinear_GEMVFast", "gemv_fast", "awq_gemv_fast"),
    ],
)
def test_autoawq(kind: str, module: str, format_name: str, n: int, k: int, group_size: int) -> None:
    packer = getattr(package(f"awq.modules.linear.{module}"), kind)
    generator = torch.Generator().manual_seed(3)
    q = torch.randint(0, 16, (n, k), generator=generator)
    zeros = torch.randint(0, 16, (n, k // group_size), generator=generator)
    # A power of two, so that what the packer divides and rounds comes out as q.
    scales = torch.full((n, k // group_size), 0.25).half()
    linear = torch.nn.Linear(k, n, bias=False, dtype=torch.float16)
    expected = (q - zeros.repeat_interleave(group_size, 1)) * 0.25
    linear.weight.data = expected.half()
    by_rows = (scales, zeros) if format_name != "awq_gemm" else (scales.T.contiguous(), zeros.T.contiguous())
    packed = packer.from_linear(linear, 4, group_size, False, *by_rows)
    names = ("qweight", "qzeros", "scales", "scaled_zeros")
    tensors = {name: getattr(packed, name) for name in names if hasattr(packed, name)}
    weight = read(tensors, TensorScheme(format_name, group_size)).weight
    assert torch.equal(weight.q.long(), q)
    assert torch.equal(weight.zeros.long(), zeros.T)
    assert torch.equal(dequantize(weight), expected)


@pytest.mark.parametrize(("n", "k", "group_size"), [(64, 128, 128), (256, 256, 128), (128, 128, -1)])
def test_autoawq_marlin(n: int, k: int, group_size: int) -> None:
    packer = package("awq.modules.linear.marlin").WQLinear_Marlin
    generator = torch.Generator().manual_seed(4)
    groups = 1 if group_size == -1 else k // group_size
    q = torch.randint(0, 16, (n, k), generator=generator)
    scales = torch.exp2(torch.randint(-6, 0, (n, groups), generator=generator)).half()
    expected = (q - 8) * scales.float().repeat_interleave(k // groups, 1)
    linear = torch.nn.Linear(k, n, bias=False, dtype=torch.float16)
    linear.weight.data = expected.half()
    # The packer takes one group as its size in numbers only.
    packed = packer.from_linear(linear, 4, k // groups, False, scales)
    tensors = {"qweight": packed.qweight, "scales": packed.scales}
    weight = read(tensors, TensorScheme("marlin", group_size, zero_point=False)).weight
    assert torch.equal(dequantize(weight), expected)


@pytest.mark.parametrize(("n", "k", "group_size"), [(64, 64, 32), (256, 128, 64), (128, 128, -1)])
def test_gptqmodel_orders_of_marlin(n: int, k: int, group_size: int) -> None:
    marlin = package("gptqmodel.utils.marlin")
    weight = random_weight(Layer(n, k, group_size=group_size), torch.Generator().manual_seed(5))
    layer, stored = weight.layer, packers.awq_gemm(weight)
    tensors = {
        "qweight": packers.marlin(weight)["qweight"],
        "scales": marlin.marlin_permute_scales(weight.scales, k, n, layer.group_size),
        "qzeros": marlin.awq_to_marlin_zero_points(stored["qzeros"], layer.groups, n, 4),
    }
    assert_same(read(tensors, TensorScheme("marlin", group_size)).weight, weight)
    bias = torch.arange(n).half()
    assert torch.equal(rows_in_order(marlin.marlin_permute_bias(bias)), bias)


@pytest.mark.parametrize("sym", [True, False])
def test_linears_of_gptqmodel_and_autoawq_are_found(sym: bool) -> None:
    """The modules themselves, as a model holds them, with the class names of the installed version."""
    qlinear = package("gptqmodel.nn_modules.qlinear.torch")
    kind = getattr(qlinear, "TorchLinear", None) or qlinear.TorchQuantLinear
    module = kind(bits=4, group_size=64, sym=sym, desc_act=False, in_features=128, out_features=32)
    linear = torch.nn.Linear(128, 32, bias=False, dtype=torch.float16)
    linear.weight.data = random(32, 128).half()
    zeros = torch.full((32, 2), 8.0 if sym else 5.0)
    g_idx = torch.arange(128, dtype=torch.int32) // 64
    module.pack(linear, torch.full((32, 2), 0.25).half(), zeros, g_idx)
    module.post_init()
    found = find(module)
    assert found.layer == Layer(32, 128, group_size=64, zero_point=not sym)
    assert_gptq(found.read("cpu"), module.dequantize_weight())
    packer = package("awq.modules.linear.gemm").WQLinear_GEMM
    # AutoAWQ's packer does not clamp.
    linear.weight.data = module.dequantize_weight().T.contiguous()
    packed = packer.from_linear(linear, 4, 64, False, torch.full((2, 32), 0.25).half(), zeros.T.contiguous())
    found = find(packed)
    assert found.layer == Layer(32, 128, group_size=64)
    assert torch.equal(dequantize(found.read("cpu").weight).half(), module.dequantize_weight().T)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_model_that_compressed_tensors_compressed_is_found(symmetric: bool) -> None:
    quantization = package("compressed_tensors.quantization")
    compressors = package("compressed_tensors.compressors")
    weights = quantization.QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group", group_size=32)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    config = quantization.QuantizationConfig(
        config_groups={"group_0": scheme}, format="pack-quantized", quantization_status="frozen"
    )
    model = torch.nn.Sequential(torch.nn.Linear(128, 64).half())
    quantization.apply_quantization_config(model, config)
    linear, generator = model[0], torch.Generator().manual_seed(6)
    linear.weight_scale.data = (torch.rand((64, 4), generator=generator) + 0.5).half() / 64
    if not symmetric:
        linear.weight_zero_point.data = torch.randint(-8, 8, (64, 4), generator=generator, dtype=torch.int8)
    x = torch.eye(128).half()
    expected = (model(x) - linear.bias).T
    compressors.ModelCompressor.from_pretrained_model(model).compress_model(model)
    packed = find(linear)
    assert packed.layer == Layer(64, 128, group_size=32, zero_point=not symmetric)
    assert packed.bias is linear.bias
    weight = packed.read("cpu").weight
    # The bias was added and taken away in fp16.
    assert torch.allclose(dequantize(weight), expected.float(), rtol=0, atol=2.0**-11)
    model(x)
    assert not hasattr(linear, "weight_packed")
    assert_same(find(linear).read("cpu").weight, weight)
