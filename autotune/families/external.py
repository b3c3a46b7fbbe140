"""Kernels of others: any function on torch tensors as a family, which its own sweeps and look-ups see."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autotune.families import registry
from autotune.families.protocol import Family
from autotune.values.device import cuda_devices, find_device, gpu_trouble
from autotune.values.errors import AutotuneError, ConfigError, DeviceError, LaunchError

if TYPE_CHECKING:
    import torch

    from autotune.layouts import QuantizedWeight
    from autotune.layouts.packed import Layout
    from autotune.values.config import Config
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem

Function = Callable[..., object]
Pack = Callable[["QuantizedWeight"], Any]
Supports = Callable[["Problem", "Config"], "str | None"]

_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_KINDS = ("cuda", "cpu")


class ExternalPlan:
    """A function with values for its tunables, in the place of a plan; it needs no workspace."""

    def __init__(self, function: Function, config: Config) -> None:
        self._function, self._values = function, config.as_dict()

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        """Always 0: what the function allocates is its own."""
        return 0

    def run(
        self,
        x: torch.Tensor,
        weight: Any,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor | None,  # noqa: ARG002
    ) -> None:
        """out[m, n] = x[m, k] @ dequant(weight).T by the function, then + bias[n].

        Raises:
            LaunchError: the function raised what no kernel of ours raises.
        """
        try:
            self._function(x, weight, out, **self._values)
        except (AutotuneError, RuntimeError):
            raise
        except Exception as error:
            raise LaunchError(f"it raised {_line(error)}") from error
        if bias is not None:
            out += bias


class ExternalFamily(Family):
    """A function `f(x, weight, out, *, tunables)` that writes out[m, n] = x[m, k] @ dequant(weight).T.

    `weight` is what `pack` made of the canonical weight. The source hash is that of the files in which the
    function, `pack` and `supports` stand, as they are now.

    Raises:
        ConfigError: the function has no file, its name is taken, or the tunables do not fit it.
    """

    def __init__(
        self,
        function: Function,
        space: Mapping[str, Sequence[int]],
        default: Mapping[str, int],
        name: str | None,
        pack: Pack | None,
        supports: Supports | None,
        device: str,
    ) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]
        self.function = function
        self.name = str(name or getattr(function, "__name__", ""))
        self.kind = device
        self.tunables = {key: tuple(values) for key, values in space.items()}
        self._pack, self._supports = pack or _canonical, supports
        if _NAME.fullmatch(self.name) is None:
            raise ConfigError(f"kernel name {self.name!r} is not lower case as my_gemm; give one with name=")
        if device not in _KINDS:
            raise ConfigError(f"kernel {self.name}: device={device!r} is not one of {', '.join(_KINDS)}")
        _check_space(self.name, function, self.tunables, default)
        self._default = self.config(*(default.get(key, values[0]) for key, values in self.tunables.items()))
        file = _file_of(function)
        if file is None:
            raise ConfigError(
                f"kernel {self.name} is not in a file, which its worker could import; write a def"
            )
        self.origin = f"{file}:{getattr(function, '__qualname__', self.name)}"
        self._source_hash = _hash(self.name, file, *filter(None, map(_file_of, (pack, supports))))
        registry.register(self)

    @functools.cached_property
    def layout(self) -> Layout:
        """What `pack` makes."""
        from autotune.layouts.packed import Layout  # the registry imports this file, and does without torch

        return Layout(self.name, self._pack)

    def find_device(self, name: str = "auto") -> Device:
        """The device of this name (`cpu`, `cuda:N`) that the kernel runs on; by default of its own kind.

        Raises:
            DeviceError: there is none of its kind, no such device, or the name is of another kind.
        """
        if self.kind == "cuda" and not cuda_devices():
            raise DeviceError(
                f"kernel {self.name} is for GPUs: no NVIDIA GPU here ({gpu_trouble()}); one for the CPU"
                ' says device="cpu" in @autotune.kernel'
            )
        device = find_device(self.kind if name == "auto" else name)
        self.expect_kind(device)
        return device

    def expect_kind(self, device: Device) -> None:
        """Raise DeviceError when the kernel is for another kind of device."""
        if device.kind != self.kind:
            raise DeviceError(
                f"kernel {self.name} runs on {self.kind}, not on {device.name}; use --device {self.kind}"
            )

    def source_hash(self) -> str:
        """Hash of the name and of the files as they were when the kernel was defined."""
        return self._source_hash

    def cannot(self, problem: Problem, device: Device) -> str | None:
        return super().cannot(problem, device) if device.kind == self.kind else f"it runs on {self.kind}"

    def misfit(self, config: Config, problem: Problem, device: Device) -> str | None:  # noqa: ARG002
        return None if self._supports is None else self._supports(problem, config)

    def candidates(self, problem: Problem, device: Device) -> Iterator[Config]:  # noqa: ARG002
        """In the order in which the values were given."""
        return itertools.starmap(self.config, itertools.product(*self.tunables.values()))

    def default(self, problem: Problem, device: Device) -> Config | None:
        """The default that was given, else the first valid config."""
        if self.reject(self._default, problem, device) is None:
            return self._default
        return next(iter(self.space(problem, device)), None)

    def estimate(self, config: Config, problem: Problem, device: Device) -> float:  # noqa: ARG002
        """No time, which nobody knows before it is measured, but an order: the default first, and both before
        autotune's own kernels, since whoever names a kernel wants it to run.
        """
        return 0.1 if config == self._default else 0.2

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Why the kernel cannot do the problem at all, or None when it can."""
        if self.default(problem, device) is not None:
            return None
        return self.reject(self._default, problem, device)

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> ExternalPlan:  # noqa: ARG002
        """The function with the config's values."""
        return ExternalPlan(self.function, config)


def load_kernel(reference: str) -> ExternalFamily:
    """Import `path/to/file.py` or `package.module`, and take the kernel `name` from it: `file.py:name`.

    The folder of a file comes first in the import path, as with a script.

    Raises:
        ConfigError: the text does not read so, the import fails, or there is no such kernel.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ConfigError(f"kernel {reference!r} does not read as file.py:name or package.module:name")
    try:
        module = _module_of(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except AutotuneError:
        raise
    except Exception as error:
        raise ConfigError(f"kernel {reference}: {place} does not import: {_line(error)}") from error
    found = getattr(module, name, None)
    if not isinstance(found, ExternalFamily):
        names = [key for key, value in vars(module).items() if isinstance(value, ExternalFamily)]
        there = f"its kernels are {', '.join(names)}" if names else "decorate it with @autotune.kernel(...)"
        raise ConfigError(f"kernel {reference}: {place} has no kernel {name}; {there}")
    return found


def _module_of(file: Path) -> ModuleType:
    file = file.resolve()
    if not file.is_file():
        raise ConfigError(f"kernel file {file} is not there")
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    module = importlib.import_module(file.stem)
    if Path(module.__file__ or "").resolve() != file:
        raise ConfigError(f"kernel file {file} has the name of {module.__file__ or file.stem}; rename it")
    return module


def _canonical(weight: QuantizedWeight) -> QuantizedWeight:
    return weight


def _check_space(
    name: str, function: Function, space: Mapping[str, Sequence[int]], default: Mapping[str, int]
) -> None:
    taken = inspect.signature(function).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
    for key, values in space.items():
        if _NAME.fullmatch(key) is None:
            raise ConfigError(f"kernel {name}: tunable {key!r} is not lower case as block_m")
        if key not in taken and not takes_any:
            raise ConfigError(f"kernel {name} has a space for {key}, but takes no such argument")
        if not values:
            raise ConfigError(f"kernel {name}: {key} has no values")
        bad = [value for value in values if type(value) is not int or value < 0]
        if bad:
            raise ConfigError(f"kernel {name}: {key}={bad[0]!r} is not a whole number >= 0")
    for key, value in default.items():
        if value not in space.get(key, ()):
            raise ConfigError(f"kernel {name}: the default {key}={value!r} is not in its space")


def _file_of(function: object) -> Path | None:
    """The file in which a function or class is defined; None of what is built in, absent, or typed in."""
    try:
        file = Path(inspect.getsourcefile(inspect.unwrap(function)) or "")  # type: ignore[arg-type]
    except TypeError:
        return None
    return file.resolve() if file.is_file() else None


def _hash(name: str, *files: Path) -> str:
    digest = hashlib.sha256(name.encode())
    for file in dict.fromkeys(files):
        digest.update(b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
