"""A quantized linear that runs the tuned kernel of its layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules import module as _of_all

from autotune.formats import awq_gemm
from autotune.layouts import PackedWeight, QuantizedWeight, pack
from autotune.layouts.packed import wait_written
from autotune.runtime.op import int4_linear, linear_parts
from autotune.runtime.plans import LayerPlans, default_lookup, device_of, plans_for, plans_of
from autotune.runtime.saving import Packed
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.errors import AutotuneError, DeviceError, FormatError, LayerError

if TYPE_CHECKING:
    from autotune.records.lookup import Lookup


_WEIGHTS = ("qweight", "scales", "zeros")
"""Buffers that a kernel of a GPU reads ahead of the stream's order."""


class Int4Linear(Packed):
    """out[..., n] = x[..., k] @ dequant(w[n, k]).T + bias[n], in the layer's dtype.

    The kernel is picked by the number of tokens at each call. For inference only: the result never requires
    grad, and a module in training mode refuses an x that does. The buffers `qweight`, `scales`, `zeros` and
    `bias` are packed for the kind of device where the module was made, so it moves between devices of one
    kind only. `perm` int32 [k], where there is one, is the order in which the columns of x meet those of the
    weight, as a checkpoint with `desc_act` needs. Made by `from_awq` or `from_quantized`.

    Every call checks what the buffers are, so they may be replaced or written to. Kernels of a GPU read them
    ahead of the stream's order: a write that torch does not count, through `.data` or in inference mode, must
    have ended before the next call.
    """

    qweight: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bias: torch.Tensor | None
    perm: torch.Tensor | None

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: torch.Tensor | None,
        plans: LayerPlans,
        perm: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.layer = weight.layer
        self.in_features, self.out_features = weight.layer.k, weight.layer.n
        packed = pack(weight, plans.device.kind)
        self.register_buffer("qweight", packed.qweight)
        self.register_buffer("scales", packed.scales)
        self.register_buffer("zeros", packed.zeros)
        self.register_buffer("bias", _checked_bias(bias, packed))
        self.register_buffer("perm", _checked_perm(perm, packed))
        self.plans = plans

    @classmethod
    def from_awq(
        cls,
        qweight: torch.Tensor,
        qzeros: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        lookup: Lookup | None = None,
    ) -> Int4Linear:
        """From AutoAWQ "gemm" tensors: qweight int32 [k, n/8], qzeros int32 [k/group_size, n/8], scales.

        Packed on the device of the tensors. `lookup` is where the configs come from, by default the
        database in force.

        Raises:
            FormatError: a tensor is not what the layout promises.
            LayerError: no kernel takes the layer's numbers.
            DeviceError: no kernel runs on the tensors' device.
        """
        return cls.from_quantized(awq_gemm.to_quantized(qweight, qzeros, scales), bias, lookup=lookup)

    @classmethod
    def from_quantized(
        cls,
        weight: QuantizedWeight,
        bias: torch.Tensor | None = None,
        *,
        perm: torch.Tensor | None = None,
        lookup: Lookup | None = None,
    ) -> Int4Linear:
        """From a canonical weight, packed on the device of its tensors; `perm` and `lookup` as above."""
        chosen = lookup or default_lookup(device_of(weight.q))
        return cls(weight, bias, plans_for(weight.layer, chosen), perm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """out[..., n] of x[..., k], which is on the module's device and of the layer's dtype."""
        out: torch.Tensor = int4_linear(*self._arguments(x))
        return out

    def parts(self, x: torch.Tensor, sizes: Sequence[int]) -> Sequence[torch.Tensor]:
        """What a call returns, in parts of so many columns.

        Each is a tensor of its own where the kernel can do that and nothing but the result is asked for: no
        hook, no other `forward`, nobody who traces or transforms the call.

        Raises:
            LayerError: the sizes do not add up to n.
        """
        if sum(sizes) != self.out_features or min(sizes) < 0:
            raise LayerError(
                f"parts of {list(sizes)} columns are not the {self.out_features} of {self.layer}"
            )
        hooks = self._forward_hooks or self._forward_pre_hooks or _of_all._global_forward_hooks
        if hooks or _of_all._global_forward_pre_hooks or "forward" in self.__dict__:
            columns: Sequence[torch.Tensor] = self(x).split(list(sizes), -1)
            return columns
        return linear_parts(sizes, *self._arguments(x))

    def _arguments(self, x: torch.Tensor) -> tuple[Any, ...]:
        """Those of the op, after the checks that are the module's."""
        if self.training and x.requires_grad and torch.is_grad_enabled():
            raise AutotuneError("no gradient passes through Int4Linear; use model.eval() or torch.no_grad()")
        # Read as a dict: each attribute that is a buffer costs half a microsecond.
        held = self._buffers
        perm = held["perm"]
        # An x of another size goes on to the op, whose error names it; gathering would read outside of it.
        if perm is not None and x.shape[-1:] == (self.in_features,):
            if perm.shape != (self.in_features,):
                raise FormatError(f"perm is {list(perm.shape)}, expected [{self.in_features}]")
            x = x.index_select(-1, perm)
        return x, held["qweight"], held["scales"], held["zeros"], held["bias"], self.plans.handle

    def extra_repr(self) -> str:
        """The layer and the config that runs for one token."""
        return f"{self.layer}, bias={self.bias is not None}, config={self.plans.answers[0].config}"

    def __setattr__(self, name: str, value: Any) -> None:
        """Check a new `perm`, and wait for a new weight; the op checks all other tensors at each call."""
        if name == "perm" and isinstance(value, torch.Tensor):
            _check_perm(value, self.layer.k)
        if name in _WEIGHTS and isinstance(value, torch.Tensor):
            wait_written(value)
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What a pickle is read by, perhaps to another device."""
        super().__setstate__(state)
        self._follow()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """What load_state_dict comes down to."""
        super()._load_from_state_dict(*arguments)
        try:
            if self.perm is not None:
                _check_perm(self.perm, self.layer.k)
        except FormatError as error:
            # The last argument collects what load_state_dict raises at its end.
            arguments[-1].append(str(error))
        self._follow()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Int4Linear:
        """What .to(), .cuda() and .half() come down to; checked on an empty tensor before anything moves."""
        probe = fn(self.scales.new_empty(0))
        if probe.device.type != self.plans.device.kind:
            raise DeviceError(
                f"Int4Linear was packed for {self.plans.device.kind} and cannot move to {probe.device};"
                f" make it from tensors that are on {probe.device}"
            )
        if probe.dtype != self.scales.dtype:
            raise FormatError(f"Int4Linear is {self.scales.dtype} and cannot become {probe.dtype}")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._follow()
        return self

    def _follow(self) -> None:
        """Take the plans of the GPU where the weights are now, once they are written."""
        wait_written(self.qweight)
        if self.qweight.is_cuda and self.qweight.get_device() != self.plans.device.index:
            self.plans = plans_of(self.plans.handle, self.qweight.get_device())


def _checked_perm(perm: torch.Tensor | None, weight: PackedWeight) -> torch.Tensor | None:
    """On the weight's device; None when it changes nothing."""
    if perm is None:
        return None
    perm = perm.detach().to(weight.qweight.device, torch.int32)
    in_order = _check_perm(perm, weight.layer.k)
    return None if torch.equal(perm, in_order) else perm.contiguous()


def _check_perm(perm: torch.Tensor, k: int) -> torch.Tensor:
    """Each of 0 to k - 1 in order, after the check that they are what is in perm."""
    in_order = torch.arange(k, dtype=perm.dtype, device=perm.device)
    whole = perm.dtype in (torch.int32, torch.int64) and tuple(perm.shape) == (k,)
    if not whole or not torch.equal(perm.sort().values, in_order):
        raise FormatError(f"perm is {perm.dtype} {list(perm.shape)}, expected each of 0 to {k - 1} once")
    return in_order


def _checked_bias(bias: torch.Tensor | None, weight: PackedWeight) -> torch.Tensor | None:
    if bias is None:
        return None
    layer = weight.layer
    if tuple(bias.shape) != (layer.n,):
        raise FormatError(f"bias is {list(bias.shape)}, expected [{layer.n}]")
    # A copy: a part of a larger tensor may start where no kernel can load vectors.
    return bias.detach().to(weight.qweight.device, TORCH_DTYPES[layer.dtype], copy=True).contiguous()
