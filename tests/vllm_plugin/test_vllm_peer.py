"""vLLM's own kernel as a peer, with a real vLLM: its loaders' parameters, its choice, and the race."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

import torch
from real_families import CPU_FAMILY
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear import MPLinearKernel
from vllm.model_executor.layers.quantization.auto_awq import _convert_awq_to_standard_format
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
from vllm.model_executor.parameter import permute_param_layout_
from vllm.platforms import PlatformEnum, current_platform

from autotune.bench.operands import Operands
from autotune.families import registry
from autotune.formats import awq_gemm
from autotune.search.tune import Tuned, tune
from autotune.serving.vllm import peer
from autotune.values.device import cpu_device
from autotune.values.errors import AutotuneError
from autotune.values.layer import Layer, Problem

KERNELS = linear._POSSIBLE_KERNELS[PlatformEnum.CPU]
LAYER = Layer(64, 128, group_size=32)


class Unpacked(MPLinearKernel):
    """A kernel by vLLM's own tools: the words unpacked as Machete's and Marlin's loaders unpack them."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c):
        return c.act_type in (torch.float16, torch.bfloat16), "of 16 bits"

    def process_weights_after_loading(self, layer):
        c = self.config
        words = permute_param_layout_(layer.qweight, input_dim=0, output_dim=1, packed_dim=0)
        q = unpack_quantized_values_into_int32(words.data, c.weight_type, packed_dim=0)
        scales = permute_param_layout_(layer.scales, input_dim=0, output_dim=1)
        group = c.partition_weight_shape[0] if c.group_size == -1 else c.group_size
        zeros = torch.tensor(8)
        if c.zero_points:
            packed = permute_param_layout_(layer.qzeros, input_dim=0, output_dim=1, packed_dim=1)
            each = unpack_quantized_values_into_int32(packed.data, c.weight_type, packed_dim=1)
            zeros = each.repeat_interleave(group, 0)
        dense = (q - zeros).float() * scales.data.float().repeat_interleave(group, 0)
        layer.dense = torch.nn.Parameter(dense, requires_grad=False)

    def apply_weights(self, layer, x, bias=None):
        assert bias is None
        return (x.float() @ layer.dense).to(x.dtype)


class AutotuneLinearKernel(Unpacked):
    """Has the name of ours."""


@pytest.fixture(autouse=True)
def nothing_disabled(monkeypatch) -> None:
    """A peer leaves our kernel out by the process's environment, which other tests share."""
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "")


@pytest.fixture
def first(monkeypatch) -> Iterator[None]:
    """Kernels that vLLM asks before its own, of which the first has the name of ours."""
    monkeypatch.setitem(
        linear._POSSIBLE_KERNELS, PlatformEnum.CPU, [AutotuneLinearKernel, Unpacked, *KERNELS]
    )


def tuned_beside(layer: Layer, m: int = 4) -> Tuned:
    operands, problem = Operands.random(layer, cpu_device()), Problem(layer, m)
    configs = registry.space(problem, cpu_device())[:2]
    return tune(problem, operands, configs, {}, peer=lambda: peer.vllm_peer(operands))


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("group_size", "zero_point", "dtype"),
    [(32, True, "bf16"), (64, False, "fp16"), (192, True, "fp16"), (192, False, "bf16")],
)
def test_the_weight_is_as_vllm_loads_it(group_size: int, zero_point: bool, dtype: str) -> None:
    tuned = tuned_beside(Layer(64, 192, group_size=group_size, dtype=dtype, zero_point=zero_point))
    assert tuned.note == ""
    ((name, median_us),) = tuned.record.evidence.peers
    assert (name, median_us > 0) == ("vllm:Unpacked", True)
    assert tuned.record.config.family == CPU_FAMILY.name


def test_parameters_are_those_of_vllms_loader_bit_for_bit() -> None:
    weight = Operands.random(LAYER, cpu_device()).weight
    stored = dict(zip(awq_gemm.NAMES, awq_gemm.from_quantized(weight), strict=True))
    loaded = torch.nn.Module()
    with peer._engine():
        for name in ("qweight", "qzeros"):
            setattr(loaded, name, torch.nn.Parameter(stored[name], requires_grad=False))
        _convert_awq_to_standard_format(loaded, "qweight", "qzeros", 4)
        ours = peer._load(weight, Kept()).layer
    for name in ("qweight", "qzeros"):
        assert torch.equal(getattr(ours, name), getattr(loaded, name))
    assert torch.equal(ours.scales, stored["scales"])


class Kept:
    """A kernel that takes parameters as they are."""

    def process_weights_after_loading(self, layer):
        assert (layer.qweight.input_dim, layer.qweight.output_dim, layer.qweight.packed_dim) == (0, 1, 0)
        assert (layer.qzeros.input_dim, layer.qzeros.output_dim, layer.qzeros.packed_dim) == (1, 0, 0)

    def apply_weights(self, layer, x, bias=None):
        raise NotImplementedError


@pytest.mark.usefixtures("first")
def test_what_a_user_disables_is_left_out_too(monkeypatch) -> None:
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "Unpacked")
    found = peer.vllm_peer(Operands.random(LAYER, cpu_device()))
    assert found.name == f"vllm:{chosen_by_vllm()}"
    assert os.environ["VLLM_DISABLED_KERNELS"].split(",") == ["Unpacked", peer.OURS]


def chosen_by_vllm() -> str:
    """What vLLM takes of its own kernels."""
    _, told = peer._choose(LAYER)
    return next(kernel.__name__ for kernel in KERNELS if kernel.can_implement(told)[0])


def test_vllms_own_kernel_of_this_cpu() -> None:
    """Its binary for this CPU may lack the kernel that it chooses; then a note says so."""
    tuned = tuned_beside(LAYER)
    assert tuned.record is not None
    name = f"vllm:{chosen_by_vllm()}"
    current_platform.import_kernels()
    if hasattr(torch.ops._C, "cpu_gemm_wna16"):
        assert [each for each, _ in tuned.record.evidence.peers] == [name]
    else:
        assert f"{name} is not timed: " in tuned.note


def test_what_vllm_cannot_do_is_one_line(monkeypatch) -> None:
    with pytest.raises(AutotuneError, match="no int4 kernel for fp32"):
        peer.vllm_peer(Operands.random(Layer(64, 128, group_size=32, dtype="fp32"), cpu_device()))
    monkeypatch.setitem(linear._POSSIBLE_KERNELS, PlatformEnum.CPU, [])
    assert "kernel is not timed: ValueError: Failed to find a kernel" in tuned_beside(LAYER).note
