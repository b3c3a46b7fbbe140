"""What a kernel family is: a space of configs, and a plan that runs one of them.

A family is one Python file in this folder that ends in `FAMILY = ...`; the registry finds it. It holds its
tunables, its constraints with their reasons, its launch geometry and its default config.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autotune.paths import shipped

if TYPE_CHECKING:
    import torch

    from autotune.config import Config
    from autotune.device import Device
    from autotune.layer import Layer, Problem
    from autotune.packing import PackedWeight


@dataclass(frozen=True, slots=True)
class Unit:
    """One translation unit for the compiler: a file of csrc/cuda, its defines and an exact arch."""

    source: str
    defines: tuple[tuple[str, int], ...]
    arch: str
    source_hash: str

    @property
    def key(self) -> str:
        """Names the unit's content: equal keys compile to the same kernel with the same compiler."""
        text = repr((self.source, self.defines, self.arch, self.source_hash))
        return hashlib.sha256(text.encode()).hexdigest()


class Plan(Protocol):
    """One config made ready for one layer on one device: running it compiles and looks up nothing."""

    def workspace_bytes(self, m: int) -> int:
        """Bytes of workspace that `run` needs for m tokens."""

    def run(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor | None,
    ) -> None:
        """out[m, n] = x[m, k] @ dequant(weight).T + bias[n], enqueued on the current stream of x's device.

        x and out are contiguous and of the layer's dtype. `workspace` has at least `workspace_bytes(m)`
        bytes; its first COUNTER_BYTES are zero, are zero again after the run, and a CUDA one is used by one
        stream only.
        """


class Family(Protocol):
    """A kernel source with tunables."""

    name: str
    kind: str
    """The kind of device that it runs on, "cuda" or "cpu"."""

    def source_hash(self) -> str:
        """Hash of all source that the family's kernels are made of."""

    def reject(self, config: Config, problem: Problem, device: Device) -> str | None:
        """Why the config is not in the problem's space on the device, or None when it is."""

    def space(self, problem: Problem, device: Device) -> list[Config]:
        """Every valid config, simplest first; empty when the family cannot do the problem."""

    def default(self, problem: Problem, device: Device) -> Config | None:
        """What the family's heuristic picks when nothing is stored.

        None leaves the problem to another family: this one cannot do it, or expects to lose.
        """

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit | None:
        """What to compile for the config, or None when it needs no compiler."""

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> Plan:
        """Make the config ready for the layer; `cubin` is the compiled `unit`, None when there is none.

        Raises:
            LaunchError: the driver refuses the cubin.
        """


def hash_sources(*names: str) -> str:
    """Hash of files of csrc/cuda, which an installed package also carries, by name and code.

    Comments and spaces do not count: records stay in force when only these change.
    """
    folder = str(_source_folder())
    files = tuple((name, os.stat(f"{folder}/{name}").st_mtime_ns) for name in sorted(names))
    return _hash(folder, files)


@functools.cache
def _source_folder() -> Path:
    return shipped("csrc/cuda")


@functools.lru_cache
def _hash(folder: str, files: tuple[tuple[str, int], ...]) -> str:
    """By time of change too, because a sweep asks for the hash once per candidate."""
    digest = hashlib.sha256()
    for name, _ in files:
        text = Path(folder, name).read_text(encoding="utf-8")
        digest.update(f"{name}\0{_code(text)}\0".encode())
    return digest.hexdigest()[:16]


def _code(text: str) -> str:
    """A source of csrc/cuda without comments, indentation and empty lines: it compiles to the same kernels.

    Lines stay apart, because directives end with them.
    """
    lines = (" ".join(line.partition("//")[0].split()) for line in text.splitlines())
    return "\n".join(filter(None, lines))
