"""The kernel that vLLM asks for each int4 linear: AWQ, GPTQ and compressed-tensors alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from vllm import envs
from vllm.model_executor.kernels.linear import MPLinearKernel, MPLinearLayerConfig
from vllm.platforms import current_platform
from vllm.scalar_type import scalar_types

from autotune.layouts import pack
from autotune.runtime.op import int4_linear
from autotune.runtime.plans import LayerPlans, default_lookup, plans_for
from autotune.serving.decide import decide
from autotune.serving.vllm import engine, report
from autotune.serving.vllm.parameters import replace_parameter, weight_of
from autotune.store.fields import in_short
from autotune.values.errors import AutotuneError, FormatError, LayerError
from autotune.values.layer import Layer

if TYPE_CHECKING:
    from autotune.records.lookup import Lookup
    from autotune.serving.decide import Mode
    from autotune.values.policy import Policy

_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
_ASKERS = frozenset(
    (
        "auto_awq",
        "auto_gptq",
        "awq_marlin",
        "compressed_tensors_wNa16",
        "gptq_marlin",
        "quark_w4a16_int4",
    )
)
"""vLLM's modules whose layers multiply by int4 weights and do no more. Others describe their layers in the
same way, and quantize the activations too."""


class AutotuneLinearKernel(MPLinearKernel):  # type: ignore[misc]
    """out[..., n] = x[..., k] @ dequant(w[n, k]).T + bias[n] by the tuned kernel of the layer.

    `mode` is what AUTOTUNE_VLLM asks for.
    """

    mode: ClassVar[Mode] = "auto"

    def __init__(self, c: MPLinearLayerConfig, *names: Any, **named: Any) -> None:
        super().__init__(c, *names, **named)
        self._plans: LayerPlans | None = None
        self._gathers = False
        self._handle = ""
        self._order_name: str = self.w_gidx_name if _has_order(c) else ""

    @classmethod
    def get_min_capability(cls) -> int:
        """The oldest GPU, as a compute capability; a CPU has none."""
        return 80 if current_platform.is_cuda() else -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether autotune takes the layer, and why not. Whatever goes wrong leaves it to vLLM."""
        try:
            reason = cls._why_not(c)
        except Exception as error:
            known = isinstance(error, AutotuneError)
            reason = in_short(error) if known else f"{type(error).__name__}: {in_short(error)}"
        if reason is not None:
            report.left(_shape(c), reason)
        return reason is None, reason

    @classmethod
    def _why_not(cls, c: MPLinearLayerConfig) -> str | None:
        layer = _layer_of(c)
        asker = engine.asker()
        if asker not in _ASKERS:
            return f"{asker} may do more than multiply by its weights"
        key = layer, engine.buckets(), engine.device()
        decision = report.decisions.get(key)
        if decision is None:
            lookup = _lookup()
            decision = decide(layer, lookup, key[1], cls.mode)
            if decision.taken:
                plans_for(layer, lookup)  # what cannot be made is left to vLLM as well
            report.decisions[key] = decision
            report.decided(decision)
        return decision.reason

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Pack the layer's parameters in place: first when they are loaded, and again when they are reloaded.

        Raises:
            FormatError: a parameter is not what its format promises.
        """
        described = _layer_of(self.config)
        try:
            weight, order = weight_of(
                described,
                getattr(layer, self.w_q_name),
                getattr(layer, self.w_s_name),
                getattr(layer, self.w_zp_name) if self.config.zero_points else None,
                getattr(layer, self._order_name) if self._order_name else None,
            )
        except FormatError as error:
            raise FormatError(f"a linear of {described}: {error}") from None
        if self._plans is None:
            self._plans = plans_for(described, _lookup())
            _check_place(weight.q, self._plans)
            self._gathers = order is not None
            report.took(self, described)
        elif self._gathers != (order is not None):
            raise FormatError("the order of groups has changed since the first load; start the engine anew")
        packed = pack(weight, self._plans.device.kind)
        replace_parameter(layer, self.w_q_name, packed.qweight)
        replace_parameter(layer, self.w_s_name, packed.scales)
        if packed.zeros is not None:
            replace_parameter(layer, self.w_zp_name, packed.zeros)
        elif self.w_zp_name and hasattr(layer, self.w_zp_name):
            replace_parameter(layer, self.w_zp_name, packed.scales.new_empty(0))
        if order is not None:
            replace_parameter(layer, self._order_name, order)
        self._handle = self._plans.handle

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """out[..., n] of x[..., k]."""
        zeros = getattr(layer, self.w_zp_name) if self.config.zero_points else None
        if self._gathers:
            x = x.index_select(-1, getattr(layer, self._order_name))
        qweight, scales = getattr(layer, self.w_q_name), getattr(layer, self.w_s_name)
        out: torch.Tensor = int4_linear(x, qweight, scales, zeros, bias, self._handle)
        return out


def _lookup() -> Lookup:
    """By the policy in force; where vLLM's results must not depend on the batch, ours do not either."""
    policy: Policy | None = "batch_invariant" if getattr(envs, "VLLM_BATCH_INVARIANT", False) else None
    return default_lookup(engine.device(), policy)


def _layer_of(c: MPLinearLayerConfig) -> Layer:
    """The layer that the config describes.

    Raises:
        LayerError: autotune has no kernel for it; the message says why.
    """
    wanted = scalar_types.uint4 if c.zero_points else scalar_types.uint4b8
    if c.weight_type != wanted:
        raise LayerError(f"weights are {c.weight_type}, and autotune has {wanted}")
    out_type = getattr(c, "out_type", None)
    if c.act_type not in _DTYPES or out_type not in (None, c.act_type):
        raise LayerError(f"activations are {out_type or c.act_type}, and autotune has fp16 and bf16")
    k, n = c.partition_weight_shape
    if _has_order(c) and k != c.full_weight_shape[0]:
        raise LayerError("its columns are in an order of their own, but split over devices")
    return Layer(n, k, group_size=c.group_size, dtype=_DTYPES[c.act_type], zero_point=c.zero_points)


def _has_order(c: MPLinearLayerConfig) -> bool:
    """Whether columns have an order of their own; vLLM 0.31 and later have none."""
    return bool(getattr(c, "has_g_idx", False))


def _check_place(tensor: torch.Tensor, plans: LayerPlans) -> None:
    if tensor.device.type != plans.device.kind:
        raise FormatError(f"the weights are on {tensor.device}, but the engine runs on {plans.device.kind}")


def _shape(c: MPLinearLayerConfig) -> str:
    k, n = c.partition_weight_shape
    return f"n={n},k={k},group_size={c.group_size}"
