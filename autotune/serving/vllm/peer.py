"""The int4 kernel that vLLM would pick for a layer, to be timed beside ours; imported only where asked for.

Weights get the form that vLLM's loaders give them (`AutoAWQMarlinLinearMethod`, `AutoGPTQLinearMethod`), and
then the kernel's own, by its `process_weights_after_loading`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from autotune.bench.operands import Operands
from autotune.bench.peer import Peer
from autotune.layouts import QuantizedWeight
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.errors import AutotuneError
from autotune.values.layer import Layer
from autotune.values.scheme import GROUP_SIZES

OURS = "AutotuneLinearKernel"


@dataclasses.dataclass(frozen=True, slots=True)
class _Loaded:
    """A linear as vLLM has it when its weights are loaded, and the method of its kernel that runs it."""

    layer: torch.nn.Module
    apply: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Loaded:
        return _Loaded(copy.deepcopy(self.layer, memo), self.apply)


class _Call:
    """The call as vLLM makes it, in the place of a plan: the kernel returns a new tensor."""

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return 0

    def run(
        self,
        x: torch.Tensor,
        weight: Any,
        bias: torch.Tensor | None,  # noqa: ARG002
        out: torch.Tensor,  # noqa: ARG002
        workspace: torch.Tensor | None,  # noqa: ARG002
    ) -> None:
        weight.apply(weight.layer, x)


class _Checked(_Call):
    """The call with its result copied into `out`; the bias is added there, since kernels permute theirs."""

    def run(
        self,
        x: torch.Tensor,
        weight: Any,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor | None,  # noqa: ARG002
    ) -> None:
        out.copy_(weight.apply(weight.layer, x))
        if bias is not None:
            out += bias


def vllm_peer(operands: Operands) -> Peer:
    """vLLM's own choice for the layer, with copies of its own of the operands' weight.

    Raises:
        AutotuneError: vLLM does not import, or has no kernel for the layer.
    """
    layer = operands.layer
    if layer.dtype == "fp32":
        raise AutotuneError("vLLM has no int4 kernel for fp32")
    _prepare()
    try:
        with _engine():
            chosen, described = _choose(layer)

            def pack(weight: QuantizedWeight) -> _Loaded:
                return _load(weight, chosen(described, "qweight", "scales", "qzeros"))

            mine = operands.in_layout(pack)
    except ImportError as error:
        raise AutotuneError(f"vLLM does not import ({error})") from None
    return Peer(f"vllm:{chosen.__name__}", mine, _Checked(), _Call())


def _prepare() -> None:
    """Leave our own kernel out of vLLM's choice, and vLLM's log out of what a sweep says."""
    disabled = os.environ.get("VLLM_DISABLED_KERNELS", "")
    if OURS not in disabled.split(","):
        os.environ["VLLM_DISABLED_KERNELS"] = ",".join(filter(None, (disabled, OURS)))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@contextlib.contextmanager
def _engine() -> Iterator[None]:
    """What vLLM's parameters and kernels ask of an engine: a config, and a group of one process."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    with set_current_vllm_config(VllmConfig()):
        if not parallel_state.model_parallel_is_initialized():
            with tempfile.TemporaryDirectory() as folder:
                parallel_state.init_distributed_environment(1, 0, f"file://{folder}/group", 0, "gloo")
                parallel_state.initialize_model_parallel(1, 1)
        yield


def _choose(layer: Layer) -> tuple[Any, Any]:
    """The class of the kernel, and what it is told of the layer."""
    from vllm.model_executor.kernels.linear import MPLinearLayerConfig, choose_mp_linear_kernel
    from vllm.scalar_type import scalar_types

    told: dict[str, Any] = {
        "full_weight_shape": (layer.k, layer.n),
        "partition_weight_shape": (layer.k, layer.n),
        "weight_type": scalar_types.uint4 if layer.zero_point else scalar_types.uint4b8,
        "act_type": TORCH_DTYPES[layer.dtype],
        "group_size": layer.group_size if layer.group_size in GROUP_SIZES else -1,
        "zero_points": layer.zero_point,
        "has_g_idx": False,
    }
    known = {field.name for field in dataclasses.fields(MPLinearLayerConfig)}  # has_g_idx goes by 0.31
    described = MPLinearLayerConfig(**{name: value for name, value in told.items() if name in known})
    return choose_mp_linear_kernel(described), described


def _load(weight: QuantizedWeight, kernel: Any) -> _Loaded:
    """The weight as a checkpoint's is when vLLM has loaded it, then as the kernel wants it."""
    from vllm.model_executor.parameter import GroupQuantScaleParameter, PackedvLLMParameter

    layer = weight.layer
    module = torch.nn.Module()
    vars(module).update(
        input_size=layer.k,
        input_size_per_partition=layer.k,
        output_size=layer.n,
        output_size_per_partition=layer.n,
        output_partition_sizes=[layer.n],
        params_dtype=TORCH_DTYPES[layer.dtype],
    )
    module.register_parameter("bias", None)
    packed = {"packed_dim": 0, "packed_factor": 8, "weight_loader": _no_loader}
    words = PackedvLLMParameter(data=_words(weight.q.T), input_dim=0, output_dim=1, **packed)
    module.register_parameter("qweight", words)
    scales = GroupQuantScaleParameter(
        data=weight.scales.clone(), input_dim=0, output_dim=1, weight_loader=_no_loader
    )
    module.register_parameter("scales", scales)
    if weight.zeros is not None:
        zeros = PackedvLLMParameter(data=_words(weight.zeros.T), input_dim=1, output_dim=0, **packed)
        module.register_parameter("qzeros", zeros)
    kernel.process_weights_after_loading(module)
    for name, parameter in list(module.named_parameters()):
        # vLLM's own classes cannot be copied.
        setattr(module, name, torch.nn.Parameter(parameter.data, requires_grad=False))
    return _Loaded(module, kernel.apply_weights)


def _words(nibbles: torch.Tensor) -> torch.Tensor:
    """int32 [rows / 8, columns] of uint8 [rows, columns], the first of eight rows in the lowest bits."""
    rows, columns = nibbles.shape
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=nibbles.device).view(1, 8, 1)
    eights = nibbles.reshape(rows // 8, 8, columns).to(torch.int32) << shifts
    return eights.sum(dim=1, dtype=torch.int32)


def _no_loader(*_: Any, **__: Any) -> None:
    """The weights are there."""
