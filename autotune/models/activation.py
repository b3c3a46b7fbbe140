"""An activation that AWQ scales: its result is divided by what the next linear's weight was multiplied by."""

from __future__ import annotations

import torch


class ScaledActivation(torch.nn.Module):
    """act(x) / scales, for scales of one row of act(x)."""

    scales: torch.Tensor

    def __init__(self, act: torch.nn.Module, scales: torch.Tensor) -> None:
        super().__init__()
        self.act = act
        self.register_buffer("scales", scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """out[..., k] of x[..., k], in the dtype of x."""
        out: torch.Tensor = self.act(x) / self.scales
        return out
