"""How long a model's load takes: repacking the linears of a Llama-7B, then looking up and preparing plans.

    python benchmarks/apply.py                       on the GPU if there is one, all 32 blocks: 224 linears
    python benchmarks/apply.py --device cpu --layers 2

Weights are random words on the device. Two models are loaded one after the other: kernels that no database
and no cache holds are compiled for the first one, the second shows what a model load costs.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import torch

from autotune.models.apply import apply
from autotune.values.device import find_device

_SHAPES = {
    "q": (4096, 4096),
    "k": (4096, 4096),
    "v": (4096, 4096),
    "o": (4096, 4096),
    "gate": (11008, 4096),
    "up": (11008, 4096),
    "down": (4096, 11008),
}
_GROUP_SIZE = 128


class AwqLinear(torch.nn.Module):
    """The tensors and numbers of an AutoAWQ gemm linear, random."""

    def __init__(self, n: int, k: int, device: str) -> None:
        super().__init__()
        self.in_features, self.out_features = k, n
        self.w_bit, self.group_size = 4, _GROUP_SIZE
        words = {"dtype": torch.int32, "device": device}
        groups = k // _GROUP_SIZE
        self.register_buffer("qweight", torch.randint(-(2**31), 2**31, (k, n // 8), **words))
        self.register_buffer("qzeros", torch.randint(-(2**31), 2**31, (groups, n // 8), **words))
        self.register_buffer("scales", torch.rand((groups, n), device=device).mul_(0.01).half())


def model_of(blocks: int, device: str) -> torch.nn.Module:
    """Blocks of a Llama-7B's linears."""
    return torch.nn.ModuleList(
        torch.nn.ModuleDict({name: AwqLinear(n, k, device) for name, (n, k) in _SHAPES.items()})
        for _ in range(blocks)
    )


def main() -> None:
    """Load two models and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--layers", type=int, default=32, help="transformer blocks of 7 linears each")
    parser.add_argument("--db", default=None, help="database to look in")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device = find_device(options.device).torch_name
    for name in ("first model", "second model"):
        model = model_of(options.layers, device)
        if device != "cpu":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        report = apply(model, db=options.db)
        whole = time.perf_counter() - started
        print(
            f"{name}: {len(report.applied)} linears, repack {report.repack_s:.3f} s,"
            f" look-up and plans {report.plans_s * 1e3:.1f} ms, apply in all {whole:.3f} s"
        )
    print(report)
    if report.skipped:
        sys.exit(f"{len(report.skipped)} linears were skipped")


if __name__ == "__main__":
    main()
