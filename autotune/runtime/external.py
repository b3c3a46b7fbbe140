"""`autotune.kernel`: a kernel of somebody else's, and its best config where a model runs it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from autotune.families import registry
from autotune.families.external import ExternalFamily, Function, Pack, Supports
from autotune.families.workspace import workspace
from autotune.layouts import QuantizedWeight
from autotune.records.lookup import Answer, Lookup
from autotune.runtime.plans import device_of, lookup_of, plans_for
from autotune.runtime.saving import Packed
from autotune.schemes.int4 import TORCH_DTYPES
from autotune.values.device import Device
from autotune.values.errors import DeviceError
from autotune.values.layer import Layer, Problem, bucket_of
from autotune.values.paths import Location, database_url


class Kernel(ExternalFamily):
    """What `autotune.kernel` makes of a function: still the function, and its records.

    A database has them beside those of autotune's own kernels, and nobody but the kernel reads them.
    """

    def __call__(self, *arguments: Any, **tunables: Any) -> object:
        """The function itself."""
        return self.function(*arguments, **tunables)

    def lookup(self, device: str | None = None, db: Location | None = None) -> Lookup:
        """The kernel's records for the device (`cpu`, `cuda:N`); by default of its own kind.

        Raises:
            DeviceError: there is no such device.
        """
        return Lookup(self.find_device(device or "auto"), db, (self.name,))

    def best(self, layer: Layer, m: int, device: str | None = None, db: Location | None = None) -> Answer:
        """The config for `m` tokens of a layer, by the rules of `autotune.lookup` among the kernel's records.

        Raises:
            DeviceError: there is no such device, or the kernel cannot do the problem on it.
        """
        return self.lookup(device, db).answer(Problem(layer, m))

    def tuned(self, layer: Layer, lookup: Lookup | None = None) -> TunedKernel:
        """The function with the best tunables for each number of tokens; `lookup` is what `lookup()` gave."""
        return TunedKernel(layer, lookup or self._lookup(self.find_device()))

    def linear(
        self, weight: QuantizedWeight, bias: torch.Tensor | None = None, *, lookup: Lookup | None = None
    ) -> KernelLinear:
        """A module that runs the tuned kernel, packed where the weight's tensors are."""
        lookup = lookup or self._lookup(device_of(weight.q))
        return KernelLinear(self.tuned(weight.layer, lookup), self.layout.pack(weight), bias)

    def set_best(
        self, module: torch.nn.Module, layer: Layer, m: int = 1, *, lookup: Lookup | None = None
    ) -> bool:
        """Give a module that has the tunables as attributes, as `split_k_iters`, their best values.

        The module stays what it is, so its kernel is to be the one that was tuned. One value serves all its
        calls: the best for `m` tokens. False, and nothing is set, when it lacks one of the attributes.
        """
        lookup = lookup or self._lookup(self.find_device())
        best = lookup.answer(Problem(layer, m)).config.as_dict()
        if not best or not all(hasattr(module, name) for name in best):
            return False
        for name, value in best.items():
            setattr(module, name, value)
        return True

    def _lookup(self, device: Device) -> Lookup:
        """The kernel's Lookup for modules that are made one at a time; it reads a layer's records once."""
        return lookup_of(device, database_url(), (self.name,))


class TunedKernel:
    """A kernel for one layer, with the best config for each number of tokens."""

    def __init__(self, layer: Layer, lookup: Lookup) -> None:
        self.layer, self.plans = layer, plans_for(layer, lookup)
        self._checked: set[int] = set()

    def answer(self, m: int) -> Answer:
        """What runs for m tokens, and where it comes from.

        Raises:
            DeviceError: the kernel cannot do so many tokens.
        """
        bucket, answer = bucket_of(m), self.plans.answer(m)
        if bucket not in self._checked:
            config, problem, device = answer.config, Problem(self.layer, bucket), self.plans.device
            reason = registry.family_of(config).reject(config, problem, device)
            if reason is not None:
                raise DeviceError(f"kernel {config.family} cannot do {problem} on {device.name}: {reason}")
            self._checked.add(bucket)
        return answer

    def __call__(
        self, x: torch.Tensor, weight: Any, out: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        """out[m, n] = x[m, k] @ dequant(weight).T + bias[n]; `weight` is as the kernel's `pack` made it."""
        m = x.shape[0]
        if not m:
            return
        self.answer(m)
        plan = self.plans.plan(m)
        with torch.cuda.device_of(x):
            plan.run(x, weight, bias, out, workspace(x.device, plan.workspace_bytes(m)))


class KernelLinear(Packed):
    """out[..., n] = x[..., k] @ dequant(w[n, k]).T + bias[n] by a tuned kernel. For inference only.

    The weight is of the kernel's own making and no buffer: make the module where it is to run.
    """

    def __init__(self, tuned: TunedKernel, weight: Any, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.tuned, self.weight = tuned, weight
        self.in_features, self.out_features = tuned.layer.k, tuned.layer.n
        self._dtype = TORCH_DTYPES[tuned.layer.dtype]
        self.bias = None if bias is None else bias.detach().to(self._dtype)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """out[..., n] of x[..., k]."""
        tokens = x.reshape(-1, self.in_features).contiguous()
        out = tokens.new_empty(len(tokens), self.out_features)
        self.tuned(tokens, self.weight, out, self.bias)
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """The layer and the config that runs for one token."""
        return f"{self.tuned.layer}, bias={self.bias is not None}, config={self.tuned.answer(1).config}"


def kernel(
    *,
    space: Mapping[str, Sequence[int]],
    default: Mapping[str, int] | None = None,
    name: str | None = None,
    pack: Pack | None = None,
    supports: Supports | None = None,
    device: str = "cuda",
) -> Callable[[Function], Kernel]:
    """Make a kernel of a function `f(x, weight, out, *, tunables)` that writes out[m, n] in place.

    x[m, k] and out are contiguous and of the layer's dtype; `weight` is the canonical `QuantizedWeight`, or
    what `pack` makes of it. `space` has the values of each tunable, the simplest first; `default` what runs
    untuned, by default the first of each. `supports(problem, config)` says why a config cannot do a problem,
    or None. `device` is the kind that it runs on. `name`, by default the function's, names its records.

    Raises:
        ConfigError: the function has no file, its name is taken, or the tunables do not fit it.
    """
    return functools.partial(
        Kernel, space=space, default=default or {}, name=name, pack=pack, supports=supports, device=device
    )
