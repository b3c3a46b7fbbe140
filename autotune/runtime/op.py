"""`torch.ops.autotune.int4_linear`: one op for every m, so that a traced or captured model still tunes.

The number of tokens is looked at inside the op, where it is a plain number; a compiled graph holds one opaque
call. The op is below autograd: its result never requires grad.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from autotune.families.workspace import workspace
from autotune.layouts import PackedWeight
from autotune.layouts.packed import Form, check_memory, form_of, wait_written
from autotune.runtime.handle import check_kind, origin_of
from autotune.runtime.plans import LayerPlans, plans_of
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.errors import LayerError

# Plain definitions cost a few microseconds less per call than torch.library.custom_op.
_library = torch.library.Library("autotune", "DEF")
_library.define(
    "int4_linear(Tensor x, Tensor qweight, Tensor scales, Tensor? zeros, Tensor? bias, str handle) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)

Addresses = tuple[int, int, int, int]
"""Of qweight, scales, zeros and bias; 0 of what is not there."""

_ALIGNMENT_BYTES = 16
_INT32 = torch.int32
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_AUTOCAST = (torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.AutocastCUDA)
_AUTOCAST_KEYS = torch._C.DispatchKeySet(_AUTOCAST[0]) | torch._C.DispatchKeySet(_AUTOCAST[1])


def _run_cpu(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    handle: str,
) -> torch.Tensor:
    plans = plans_of(handle, -1)
    addresses = _known(plans, qweight, scales, zeros, bias)
    if addresses is None:
        addresses = _check_weight(plans, x.device, qweight, scales, zeros, bias)
    form = plans.form
    layer = form.layer
    shape = x.shape
    if x.dtype is not form.dtype or not shape or shape[-1] != layer.k:
        _refuse(x, form)
    if not x.is_contiguous():
        x = x.detach().contiguous()
    out = x.new_empty((*shape[:-1], layer.n))
    m = x.numel() // layer.k
    if m:
        plan = plans.plan(m)
        launch = getattr(plan, "launch", None)
        if launch is None:
            weight = PackedWeight(layer, form.kind, qweight, scales, zeros)
            scratch = workspace(x.device, plan.workspace_bytes(m))
            plan.run(x.view(m, layer.k), weight, bias, out.view(m, layer.n), scratch)
        else:  # checks were made here, and views of x and out cost more than some kernels
            launch(m, x.data_ptr(), *addresses, out.data_ptr())
    return out


def _run(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    handle: str,
    index: int,
    sizes: Sequence[int] | None = None,
) -> Any:
    """The product on the GPU `index`; with `sizes`, which add up to n, its parts of so many columns."""
    plans = plans_of(handle, index)
    if _known(plans, qweight, scales, zeros, bias) is None:
        _check_weight(plans, x.device, qweight, scales, zeros, bias)
    form = plans.form
    n, k = form.layer.n, form.layer.k
    shape = x.shape
    if x.dtype is not form.dtype or not shape or shape[-1] != k:
        _refuse(x, form)
    if x.requires_grad:
        x = x.detach()
    flat = len(shape) == 2
    tokens = x if flat else x.reshape(-1, k)
    if not tokens.is_contiguous() or tokens.data_ptr() % _ALIGNMENT_BYTES:
        tokens = tokens.clone(memory_format=torch.contiguous_format)
    m = shape[0] if flat else tokens.shape[0]
    out = tokens.new_empty(m, n)
    if m:
        plan = plans.plan(m)
        weight = PackedWeight(form.layer, form.kind, qweight, scales, zeros)
        scratch_bytes = plan.workspace_bytes(m)
        scratch = workspace(x.device, scratch_bytes) if scratch_bytes else None
        write_parts = getattr(plan, "run_parts", None)
        if sizes and write_parts and write_parts(sizes, tokens, weight, bias, out, scratch):
            parts = out.view(-1).split([m * size for size in sizes])
            return [part.view(*shape[:-1], size) for part, size in zip(parts, sizes, strict=True)]
        plan.run(tokens, weight, bias, out, scratch)
    out = out if flat else out.view(*shape[:-1], n)
    return out.split(sizes, -1) if sizes else out


def _run_cuda(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    handle: str,
    *,
    sizes: Sequence[int] | None = None,
) -> Any:
    index = x.get_device()
    # torch.cuda.current_device() first asks whether there is CUDA at all.
    if index == torch._C._cuda_getDevice():
        return _run(x, qweight, scales, zeros, bias, handle, index, sizes)
    with torch.cuda.device(index):
        return _run(x, qweight, scales, zeros, bias, handle, index, sizes)


def linear_parts(sizes: Sequence[int], x: torch.Tensor, *others: Any) -> Sequence[torch.Tensor]:
    """What the op gives of x and its other arguments, in parts of so many columns, which add up to n.

    In a plain call on a GPU each is a tensor of its own where the kernel can write it so: torch's elementwise
    kernels read that up to twice as fast as columns of a wider one. Whoever traces, compiles or transforms
    the call sees the op and a split of its result.
    """
    parts: Sequence[torch.Tensor]
    if _is_plain_gpu_call(x):
        parts = _run_cuda(x, *others, sizes=sizes)
    else:
        parts = int4_linear(x, *others).split(list(sizes), -1)
    return parts


def _is_plain_gpu_call(x: torch.Tensor) -> bool:
    """Whether a call with x does nothing but compute on a GPU: no trace, no transform, no autocast."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in _PLAIN
        and x.is_cuda
        and not torch.is_autocast_enabled("cuda")
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def _known(
    plans: LayerPlans,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> Addresses | None:
    """The tensors' addresses if they have the form that kernels read, and are where they were when checked.

    An address tells the device too.
    """
    form = plans.form
    addresses = (
        qweight.data_ptr(),
        scales.data_ptr(),
        0 if zeros is None else zeros.data_ptr(),
        0 if bias is None else bias.data_ptr(),
    )
    state = plans.checked.get(addresses)
    known = (
        state is not None
        and qweight.shape == form.qweight
        and scales.shape == form.scales
        and qweight.dtype is _INT32
        and scales.dtype is form.dtype
        and qweight.is_contiguous()
        and scales.is_contiguous()
        and (
            zeros is None
            or (zeros.shape == form.zeros and zeros.dtype is form.zeros_dtype and zeros.is_contiguous())
        )
        and (bias is None or (bias.shape == form.bias and bias.dtype is form.dtype and bias.is_contiguous()))
        and state == _state(qweight, scales, zeros, bias)
    )
    return addresses if known else None


def _check_weight(
    plans: LayerPlans,
    device: torch.device,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> Addresses:
    """Check the tensors, wait until they are written, remember that, and return their addresses.

    Raises:
        LayerError: no kernel may read one of them; the message names it.
    """
    plans.form.check(device, qweight, scales, zeros, bias)
    named = {"qweight": qweight, "scales": scales, "zeros": zeros, "bias": bias}
    for name, tensor in named.items():
        if tensor is not None:
            check_memory(name, tensor)
    addresses = (
        qweight.data_ptr(),
        scales.data_ptr(),
        0 if zeros is None else zeros.data_ptr(),
        0 if bias is None else bias.data_ptr(),
    )
    # A capture cannot wait, so what it reads is looked at again.
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        wait_written(qweight)
        plans.note_checked(addresses, _state(qweight, scales, zeros, bias))
    return addresses


def _state(
    qweight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, bias: torch.Tensor | None
) -> tuple[int | None, ...]:
    """The bytes of each storage, and on a GPU the versions, which an in-place write changes.

    A storage may be resized and find its old address again; kernels of a GPU must not overtake a write.
    """
    sizes = (
        qweight.untyped_storage().nbytes(),
        scales.untyped_storage().nbytes(),
        0 if zeros is None else zeros.untyped_storage().nbytes(),
        0 if bias is None else bias.untyped_storage().nbytes(),
    )
    if not qweight.is_cuda:
        return sizes
    try:
        return *sizes, qweight._version, scales._version, None if zeros is None else zeros._version
    except RuntimeError:
        # One was made in inference mode, where torch keeps no versions.
        return sizes


def _autocast(
    x: torch.Tensor,
    qweight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    handle: str,
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
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    handle: str,
) -> torch.Tensor:
    """What tracing sees: the checks, and an empty result."""
    origin = origin_of(handle)
    form = form_of(origin.layer, origin.kind)
    if x.device.type != "meta":
        check_kind(origin, x.device.type)
    form.check(x.device, qweight, scales, zeros, bias)
    if x.dtype != form.dtype or x.shape[-1:] != (form.layer.k,):
        _refuse(x, form)
    return x.new_empty((*x.shape[:-1], form.layer.n))


def _refuse(x: torch.Tensor, form: Form) -> NoReturn:
    """Raise the LayerError of an x that does not fit the layer."""
    if x.dtype != form.dtype:
        raise LayerError(f"x is {x.dtype}, but the layer's scales are {form.dtype}; pass x.to({form.dtype})")
    raise LayerError(f"x is {list(x.shape)}, expected [..., {form.layer.k}] for {form.layer}")


_library.impl("int4_linear", _run_cpu, "CPU")
_library.impl("int4_linear", _run_cuda, "CUDA")
_library.impl("int4_linear", torch.library.fallthrough_kernel, "Autograd")
for _key in _AUTOCAST:
    _library.impl("int4_linear", _autocast, _key.name)
torch.library.register_fake("autotune::int4_linear", _shape, lib=_library)

int4_linear = torch.ops.autotune.int4_linear.default
"""int4_linear(x[..., k], qweight, scales, zeros or None, bias or None, handle) -> out[..., n]."""
