"""What modules carry beside their tensors, and apply: nothing is lost in silence."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from types import ModuleType

import foreign
import packers
import pytest
import torch
from packages import package
from runtime_tools import AwqLinear, assert_is_linear, tokens_of, weight_of

from autotune.models.apply import apply
from autotune.models.report import Report
from autotune.runtime.linear import Int4Linear
from autotune.values.layer import Layer

LAYER = Layer(128, 256, group_size=64)
X = tokens_of((3, LAYER.k), torch.float16)


def quiet_apply(model: torch.nn.Module) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return apply(model)


def model_of(linear: torch.nn.Module) -> torch.nn.Sequential:
    """The linear behind one that is always swapped."""
    return torch.nn.Sequential(AwqLinear(weight_of(Layer(256, 256, group_size=64), 7)), linear).eval()


def test_forward_hooks_go_on_and_can_be_removed() -> None:
    """Activation capture, and an adapter by hook, as long as their owner wants."""
    weight = weight_of(LAYER)
    model = model_of(AwqLinear(weight))
    old, seen = model[1], []
    down = tokens_of((8, LAYER.k), torch.float16, 2) / 64
    up = tokens_of((LAYER.n, 8), torch.float16, 3) / 64
    handles = [
        old.register_forward_pre_hook(lambda _, args: (args[0] * 2,)),
        old.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs), with_kwargs=True),
        old.register_forward_hook(lambda _, args, out: out + args[0] @ down.T @ up.T),
        old.register_forward_hook(lambda module, args, out: seen.append((module, args[0], out))),
    ]
    report = quiet_apply(model)
    assert report.applied == ("0", "1")
    tuned = model[1]
    out = tuned(X)
    plain = Int4Linear.from_quantized(weight).eval()
    expected = plain(2 * X) + 2 * X @ down.T @ up.T
    assert torch.equal(out, expected)
    assert seen[0][0] is tuned
    assert torch.equal(seen[0][1], 2 * X)
    assert torch.equal(seen[0][2], expected)
    for handle in handles:
        handle.remove()
    assert torch.equal(tuned(X), plain(X))
    assert len(seen) == 1


def test_a_module_under_two_names_keeps_its_hooks_under_both() -> None:
    shared, calls = AwqLinear(weight_of(LAYER)), []
    shared.register_forward_hook(lambda module, *_: calls.append(module))
    model = torch.nn.ModuleDict({"one": shared, "other": shared})
    assert quiet_apply(model).applied == ("one", "other")
    assert isinstance(model["one"], Int4Linear)
    assert model["one"] is model["other"]
    model["one"](X), model["other"](X)
    assert calls == [model["one"]] * 2


class Doubled(AwqLinear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Scaled(torch.nn.Linear):
    """Of the class that compressed-tensors keeps, but not with its forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Called(AwqLinear):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().__call__(x)


def with_own_forward() -> torch.nn.Module:
    linear = AwqLinear(weight_of(LAYER))
    forward = linear.forward
    linear.forward = lambda x: 2 * forward(x)
    return linear


def with_bound_forward() -> torch.nn.Module:
    linear = AwqLinear(weight_of(LAYER))
    linear.forward = types.MethodType(lambda self, x: 2 * AwqLinear.forward(self, x), linear)
    return linear


def with_adapter() -> torch.nn.Module:
    linear = AwqLinear(weight_of(LAYER))
    linear.lora_A, linear.lora_B = torch.nn.Linear(256, 8), torch.nn.Linear(8, 128)
    return linear


def with_parameters() -> torch.nn.Module:
    linear = AwqLinear(weight_of(LAYER))
    linear.lora_A = torch.nn.Parameter(torch.zeros(8, 256))
    return linear


def with_a_scale_of_x() -> torch.nn.Module:
    linear = AwqLinear(weight_of(LAYER))
    linear.register_buffer("input_scale", torch.ones(LAYER.k, dtype=torch.float16))
    return linear


def parametrized() -> torch.nn.Module:
    linear = foreign.decompressed(weight_of(LAYER))
    torch.nn.utils.parametrize.register_parametrization(linear, "weight", torch.nn.Identity())
    return linear


def weight_normed() -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nn.utils.weight_norm(foreign.decompressed(weight_of(LAYER)))


def scaled() -> torch.nn.Module:
    linear = foreign.compressed(weight_of(LAYER))
    linear.__class__ = Scaled
    return linear


def hooked(register: str) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        linear = AwqLinear(weight_of(LAYER))
        getattr(linear, register)(lambda *_: None)
        return linear

    return make


def with_unknown_hook() -> torch.nn.Module:
    """As accelerate puts a hook on a module, one that it offers nobody else to read."""
    linear = AwqLinear(weight_of(LAYER))
    linear._hf_hook, linear._old_forward = types.SimpleNamespace(), linear.forward
    linear.forward = functools.partial(AwqLinear.forward, linear)
    return linear


KEPT = {
    "a forward of its own": (with_own_forward, "has a forward of its own"),
    "a bound forward": (with_bound_forward, "has a forward of its own"),
    "a subclass": (
        lambda: Doubled(weight_of(LAYER)),
        "is a Doubled, whose forward is not that of AwqLinear",
    ),
    "a subclass of Linear": (scaled, "is a Scaled, whose forward is not that of Linear"),
    "a call of its own": (lambda: Called(weight_of(LAYER)), "is a Called, whose class replaces __call__"),
    "modules inside": (with_adapter, "has modules inside, which would be lost: lora_A, lora_B"),
    "parameters": (with_parameters, "has tensors that its format does not know: lora_A"),
    "a buffer": (with_a_scale_of_x, "has tensors that its format does not know: input_scale"),
    "parametrizations": (parametrized, "has modules inside, which would be lost: parametrizations"),
    "weight norm": (weight_normed, "has tensors that its format does not know: weight_g, weight_v"),
    "accelerate": (with_unknown_hook, "has accelerate's SimpleNamespace"),
    "backward hooks": (hooked("register_full_backward_hook"), "has backward hooks"),
    "backward pre-hooks": (hooked("register_full_backward_pre_hook"), "has backward hooks"),
    "state_dict hooks": (hooked("register_state_dict_post_hook"), "has state_dict hooks"),
    "state_dict pre-hooks": (hooked("register_state_dict_pre_hook"), "has state_dict hooks"),
    "load hooks": (hooked("register_load_state_dict_post_hook"), "has load_state_dict hooks"),
    "load pre-hooks": (hooked("register_load_state_dict_pre_hook"), "has load_state_dict hooks"),
}


@pytest.mark.parametrize(("make", "reason"), KEPT.values(), ids=KEPT)
def test_what_would_be_lost_keeps_the_module(make: Callable[[], torch.nn.Module], reason: str) -> None:
    linear = make()
    held = dict(linear.named_parameters()) | dict(linear.named_buffers())
    model = model_of(linear)
    report = quiet_apply(model)
    assert report.applied == ("0",)
    assert model[1] is linear
    assert list(report.skipped) == ["1"]
    assert report.skipped["1"].startswith(reason)
    assert dict(linear.named_parameters()) | dict(linear.named_buffers()) == held


def test_what_only_a_kernel_needs_is_no_extra() -> None:
    """GPTQModel holds orders and scratch memory as parameters, and most are empty."""
    weight = weight_of(Layer(128, 256, group_size=64, zero_point=False))
    linear = foreign.repacked_marlin("MarlinLinear")(weight)
    for name, tensor in (("zp", torch.empty(0, dtype=torch.int32)), ("global_scale", torch.empty(0))):
        linear.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    linear.workspace = torch.nn.Parameter(torch.zeros(16, dtype=torch.int32), requires_grad=False)
    assert quiet_apply(model_of(linear)).applied == ("0", "1")


def test_a_class_of_the_same_library_may_have_its_own_forward() -> None:
    """As the Triton linear of GPTQModel is one of its torch linears."""
    weight = weight_of(LAYER)
    base = type("TorchLinear", (torch.nn.Module,), {"forward": lambda *_: None, "__module__": "lib.torch"})
    kind = type("TritonV2Linear", (base,), {"forward": lambda *_: None, "__module__": "lib.triton"})
    linear = foreign.linear("TorchLinear", weight, packers.gptq(weight, minus_one=False), bits=4)
    linear.sym, linear.REQUIRES_FORMAT_V2 = False, True
    linear.__class__ = kind
    model = model_of(linear)
    assert quiet_apply(model).applied == ("0", "1")
    assert_is_linear(model[1](X), weight, X)


@pytest.mark.parametrize("wrap", [lambda forward: forward, torch.compile], ids=["bound", "compiled"])
def test_the_forward_of_the_class_is_none_of_its_own(wrap: Callable[..., object]) -> None:
    """As accelerate leaves a module that it took its hook from, and as some libraries speed up their own."""
    linear = AwqLinear(weight_of(LAYER))
    linear.forward = wrap(linear.forward)
    assert quiet_apply(model_of(linear)).applied == ("0", "1")


def compressed(quantization: ModuleType, **activations: object) -> torch.nn.Sequential:
    """A linear that compressed-tensors quantized, in which it put a forward of its own."""
    weights = quantization.QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=32)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights, **activations)
    config = quantization.QuantizationConfig(
        config_groups={"group_0": scheme}, format="pack-quantized", quantization_status="frozen"
    )
    model = torch.nn.Sequential(torch.nn.Linear(128, 64).half()).eval()
    quantization.apply_quantization_config(model, config)
    model[0].weight_scale.data = torch.full((64, 4), 1 / 64).half()
    package("compressed_tensors.compressors").ModelCompressor.from_pretrained_model(model).compress_model(
        model
    )
    return model


def test_compressed_tensors_is_judged_by_its_scheme() -> None:
    quantization = package("compressed_tensors.quantization")
    model = compressed(quantization)
    assert "forward" in vars(model[0])
    assert quiet_apply(model).applied == ("0",)
    eight_bits = quantization.QuantizationArgs(num_bits=8, dynamic=True, strategy="token")
    for name in ("input_activations", "output_activations"):
        model = compressed(quantization, **{name: eight_bits})
        linear = model[0]
        report = quiet_apply(model)
        assert report.skipped == {"0": f"quantizes its {name.replace('_', ' ')} too"}
        assert model[0] is linear
    model = compressed(quantization)
    theirs = model[0].forward
    model[0].forward = lambda x: 2 * theirs(x)
    assert quiet_apply(model).skipped == {"0": "has a forward of its own, put in place of its class's"}


def test_a_hook_of_accelerate_goes_on() -> None:
    hooks = package("accelerate.hooks")

    class Noting(hooks.AlignDevicesHook):
        calls = 0

        def pre_forward(self, *args, **kwargs):
            Noting.calls += 1
            return super().pre_forward(*args, **kwargs)

    Noting.__name__ = "AlignDevicesHook"
    weight = weight_of(LAYER)
    linear = AwqLinear(weight)
    hooks.add_hook_to_module(linear, Noting(execution_device="cpu"))
    model = model_of(linear)
    assert quiet_apply(model).applied == ("0", "1")
    assert_is_linear(model[1](X), weight, X)
    assert Noting.calls == 1
    hooks.remove_hook_from_module(model[1])
    assert_is_linear(model[1](X), weight, X)
    assert Noting.calls == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"execution_device": "cpu", "offload": True}, "AlignDevicesHook, which offloads its weights"),
        ({"execution_device": "cuda:0"}, "is kept on cuda:0 by accelerate's AlignDevicesHook"),
    ],
)
def test_a_hook_of_accelerate_that_does_more_keeps_the_module(options: dict, reason: str) -> None:
    hooks = package("accelerate.hooks")
    linear = AwqLinear(weight_of(LAYER))
    hook = hooks.AlignDevicesHook(**options)
    hook.init_hook = lambda module: module
    hooks.add_hook_to_module(linear, hook)
    report = quiet_apply(model_of(linear))
    assert report.applied == ("0",)
    assert reason in report.skipped["1"]


def test_a_forward_that_was_put_over_a_hook_of_accelerate_keeps_the_module() -> None:
    hooks = package("accelerate.hooks")
    linear = AwqLinear(weight_of(LAYER))
    hooks.add_hook_to_module(linear, hooks.AlignDevicesHook(execution_device="cpu"))
    theirs = linear.forward
    linear.forward = lambda x: 2 * theirs(x)
    report = quiet_apply(model_of(linear))
    assert report.skipped == {"1": "has a forward of its own, put in place of its class's"}
