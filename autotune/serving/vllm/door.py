"""vLLM's door: its list of kernels for mixed-precision linears, and the key of its compile caches."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.model_executor.kernels import linear
from vllm.platforms import PlatformEnum

from autotune.serving.vllm import VARIABLE, report
from autotune.serving.vllm.kernel import AutotuneLinearKernel

if TYPE_CHECKING:
    from autotune.serving.decide import Mode

_FIELDS = {
    "full_weight_shape",
    "partition_weight_shape",
    "weight_type",
    "act_type",
    "group_size",
    "zero_points",
}
_ARGUMENTS = ("self", "c", "w_q_param_name", "w_s_param_name", "w_zp_param_name")


def enter(mode: Mode) -> None:
    """Put the kernel first for GPUs and CPUs, and what it serves into the key of compile caches.

    vLLM's own function appends, which would leave autotune what no other kernel takes.

    Raises:
        Exception: this vLLM is built otherwise; nothing was changed.
    """
    _check()
    lists = [linear._POSSIBLE_KERNELS[platform] for platform in (PlatformEnum.CUDA, PlatformEnum.CPU)]
    factors: dict[str, Any] = envs.environment_variables
    AutotuneLinearKernel.mode = mode
    for kernels in lists:
        if AutotuneLinearKernel not in kernels:
            kernels.insert(0, AutotuneLinearKernel)
    # A graph that was compiled for other kernels, or another autotune, must not be loaded onto our weights.
    # vLLM asks when the model is loaded, so the decisions are made by then.
    factors[VARIABLE] = report.digest


def _check() -> None:
    """Raise unless vLLM's base class is made and called as ours is written for."""
    base = linear.MPLinearKernel
    fields = linear.MPLinearLayerConfig.__dataclass_fields__
    if not set(fields) >= _FIELDS:
        raise TypeError(f"MPLinearLayerConfig has {', '.join(fields)}")
    made = tuple(inspect.signature(base.__init__).parameters)
    if made[: len(_ARGUMENTS)] != _ARGUMENTS:
        raise TypeError(f"{base.__name__} takes {', '.join(made)}")
    expected = {"get_min_capability", "can_implement", "process_weights_after_loading", "apply_weights"}
    if set(base.__abstractmethods__) != expected:
        raise TypeError(f"{base.__name__} asks for {', '.join(sorted(base.__abstractmethods__))}")
