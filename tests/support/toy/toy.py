"""A family in one file and one CUDA source: plain torch on a CPU, a plain kernel on a GPU.

`rows` of n are computed at a time. It is made to be read; its estimates are lower than any other's.
"""

from __future__ import annotations

from pathlib import Path

from autotune.families.gemm import CudaFamily, Geometry, ceil_div
from autotune.families.protocol import Family, Launch
from autotune.jit.sources import digest
from autotune.values.device import cuda_devices

ROWS = {"rows": (64, 32)}
US = 0.01


class TorchPlan:
    """One config of one layer."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return 0

    def run(self, x, weight, bias, out, workspace) -> None:  # noqa: ARG002
        from autotune.layouts import dequantize, unpack

        dense = dequantize(unpack(weight))
        for start in range(0, len(dense), self._rows):
            part = slice(start, start + self._rows)
            out[:, part] = x.float() @ dense[part].T + (0 if bias is None else bias[part].float())


class TorchToy(Family):
    """For CPUs: there is nothing to compile."""

    name, kind, tunables = "toy", "cpu", ROWS

    def source_hash(self) -> str:
        return digest(Path(__file__).read_text())[:16]

    def candidates(self, problem, device):  # noqa: ARG002
        return map(self.config, ROWS["rows"])

    def default(self, problem, device):  # noqa: ARG002
        return self.config(64)

    def estimate(self, config, problem, device) -> float:  # noqa: ARG002
        return US

    def plan(self, config, layer, device, cubin) -> TorchPlan:  # noqa: ARG002
        return TorchPlan(config["rows"])


class ToyGeometry(Geometry):
    """A block has so many rows, a thread each, and one token."""

    def launch(self, tokens: int) -> Launch:
        rows = self.config["rows"]
        return Launch((ceil_div(self.layer.n, rows), tokens, 1), rows, 0, False)

    def defines(self):
        return (("ROWS", self.config["rows"]),)

    def estimate(self, m: int) -> float:  # noqa: ARG002
        return US


class CudaToy(CudaFamily):
    """For GPUs: the plan, the checks and the choice are those of every CUDA family."""

    name, tunables = "toy", ROWS
    source = str(Path(__file__).with_name("toy.cu"))
    kernel = "toy"
    geometry = ToyGeometry

    def candidates(self, problem, device):  # noqa: ARG002
        return map(self.config, ROWS["rows"])


FAMILY = CudaToy() if cuda_devices() else TorchToy()
