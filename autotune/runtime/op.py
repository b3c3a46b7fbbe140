"""`torch.ops.autotune.int4_linear`: one op for every m, so that a traced or captured model still tunes.

The number of tokens is looked at inside the op, where it is a plain number; a compiled graph holds one opaque
call. The op is below autograd: its result never requires grad.
"""

from __future__ import annotations

import torch

from autotune.errors import LayerError
from autotune.kernels.workspace import workspace
from autotune.packing import PackedWeight
from autotune.packing.quantized import TORCH_DTYPES
from autotune.runtime.plans import LayerPlans, plans_of

# Plain definitions cost a few microseconds less per call than torch.library.custom_op.
_library = torch.library.Library("autotune", "DEF")
_library.define(
    "int4_linear(Tensor x, Tensor qweight, Tensor scales, Tensor? zeros, Tensor? bias, int handle) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)

_ALIGNMENT_BYTES = 16
_AUTOCAST = (torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.AutocastCUDA)
_AUTOCAST_KEYS = torch._C.DispatchKeySet(_AUTOCAST[0]) | torch._C.DispatchKeySet(_AUTOCAST[1])


def _run(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    handle: int,
) -> torch.Tensor:
    plans = _plans(x, qweight, handle)
    layer = plans.layer
    if x.requires_grad:
        x = x.detach()
    tokens = x if x.dim() == 2 else x.reshape(-1, layer.k)
    if not tokens.is_contiguous() or tokens.data_ptr() % _ALIGNMENT_BYTES:
        tokens = tokens.clone(memory_format=torch.contiguous_format)
    m = tokens.shape[0]
    out = tokens.new_empty(m, layer.n)
    if m:
        plan = plans.plan(m)
        weight = PackedWeight(layer, plans.device.kind, qweight, scales, zeros)
        plan.run(tokens, weight, bias, out, workspace(x.device, plan.workspace_bytes(m)))
    return out if x.dim() == 2 else out.view(*x.shape[:-1], layer.n)


def _run_cuda(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    handle: int,
) -> torch.Tensor:
    index = qweight.get_device()
    # torch.cuda.current_device() first asks whether there is CUDA at all.
    if index == torch._C._cuda_getDevice():
        return _run(x, qweight, scales, zeros, bias, handle)
    with torch.cuda.device(index):
        return _run(x, qweight, scales, zeros, bias, handle)


def _autocast(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    handle: int,
) -> torch.Tensor:
    """Under autocast x becomes what the layer computes in, whatever autocast would choose: scales stay."""
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
        if x.dtype in TORCH_DTYPES.values():
            x = x.to(scales.dtype)
        out: torch.Tensor = int4_linear(x, qweight, scales, zeros, bias, handle)
        return out


def _shape(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,  # noqa: ARG001
    zeros: torch.Tensor | None,  # noqa: ARG001
    bias: torch.Tensor | None,  # noqa: ARG001
    handle: int,
) -> torch.Tensor:
    """What tracing sees: the checks, and an empty result."""
    return x.new_empty((*x.shape[:-1], _plans(x, qweight, handle).layer.n))


def _plans(x: torch.Tensor, qweight: torch.Tensor, handle: int) -> LayerPlans:
    """The plans of the handle, after the cheap checks that keep a kernel from reading wrong memory.

    Raises:
        LayerError: x does not fit the layer.
    """
    try:
        plans = plans_of(handle)
    except KeyError:
        raise LayerError(f"handle={handle} names no linear of this process; make the model anew") from None
    layer = plans.layer
    if x.dtype != TORCH_DTYPES[layer.dtype]:
        dtype = TORCH_DTYPES[layer.dtype]
        raise LayerError(f"x is {x.dtype}, but the layer's scales are {dtype}; pass x.to({dtype})")
    if x.dim() == 0 or x.shape[-1] != layer.k:
        raise LayerError(f"x is {list(x.shape)}, expected [..., {layer.k}] for {layer}")
    if x.device != qweight.device:
        raise LayerError(f"x is on {x.device}, but the layer is on {qweight.device}; move one to the other")
    return plans


_library.impl("int4_linear", _run, "CPU")
_library.impl("int4_linear", _run_cuda, "CUDA")
_library.impl("int4_linear", torch.library.fallthrough_kernel, "Autograd")
for _key in _AUTOCAST:
    _library.impl("int4_linear", _autocast, _key.name)
torch.library.register_fake("autotune::int4_linear", _shape, lib=_library)

int4_linear = torch.ops.autotune.int4_linear.default
"""int4_linear(x[..., k], qweight, scales, zeros or None, bias or None, handle) -> out[..., n]."""
