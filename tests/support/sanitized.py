"""Runs sampled configs of one CUDA family and nothing else of ours: what compute-sanitizer is to watch.

    compute-sanitizer --tool racecheck --kernel-name kns=KERNEL python tests/support/sanitized.py FAMILY

Under racecheck the verification of tests/families/test_cuda_kernels.py ends in an error of the tool itself.
"""

import sys

import torch

from autotune.families import registry
from autotune.families.workspace import workspace
from autotune.jit import compiler
from autotune.layouts import pack, random_weight
from autotune.values.device import find_device
from autotune.values.layer import Layer, Problem

LAYERS = (
    Layer(1032, 1376, group_size=32),
    Layer(520, 2112, group_size=64, dtype="bf16", zero_point=False),
    Layer(776, 2048),
)
MS = (1, 7, 16, 31, 64, 100, 350)
COUNT = 3


def main(name: str) -> None:
    device, ran = find_device("cuda"), 0
    for layer in LAYERS:
        weight = pack(random_weight(layer, torch.Generator(device.torch_name).manual_seed(0)), device.kind)
        for m in MS:
            space = registry.families()[name].valid(Problem(layer, m), device)
            x = torch.randn(m, layer.k, device=device.torch_name).to(weight.scales.dtype)
            out = x.new_empty(m, layer.n)
            for config in space[:: max(1, len(space) // COUNT)]:
                family = registry.family_of(config)
                plan = family.plan(config, layer, device, compiler.build(family.unit(config, layer, device)))
                plan.run(x, weight, None, out, workspace(x.device, plan.workspace_bytes(m)))
                torch.cuda.synchronize()
                ran += 1
    print(f"{ran} configs ran")


if __name__ == "__main__":
    main(sys.argv[1])
