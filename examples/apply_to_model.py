"""Swap the int4 linears of a model that another library loaded for tuned ones, in place."""

from __future__ import annotations

import tiny
import torch

import autotune


class WQLinear_GEMM(torch.nn.Module):  # noqa: N801
    """Stands in for AutoAWQ's linear: autotune knows it by its tensors and attributes."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.w_bit, self.group_size = 4, tiny.GROUP_SIZE
        for name, tensor in tiny.quantize(weight).items():
            self.register_buffer(name, tensor)


torch.manual_seed(0)
weights = torch.randn(256, 128) / 16, torch.randn(64, 256) / 16
model = torch.nn.Sequential(WQLinear_GEMM(weights[0]), torch.nn.SiLU(), WQLinear_GEMM(weights[1]))

report = autotune.apply(model)
print(report)
print(model)

# The weights were rounded to 4 bits, so the results agree with the dense ones to a tenth or so.
x = torch.randn(4, 128)
dense = torch.nn.functional.silu(x @ weights[0].T) @ weights[1].T
tuned = model(x.half()).float()
error = ((tuned - dense).norm() / dense.norm()).item()
print(f"relative difference to the dense model: {error:.3f}")
assert error < 0.15, error
