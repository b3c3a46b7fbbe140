"""Linears that read the same x as one linear: its product is computed once and split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from autotune.layouts import QuantizedWeight
from autotune.runtime.linear import Int4Linear
from autotune.values.layer import Layer


class Product:
    """The parts of one fused linear share its product: the first part computes it, the last one drops it.

    A part that is called out of turn, or with another x, computes the product anew, so every order of calls
    is right. What is kept is one tuple, so that threads which share a model at worst compute it twice; x is
    known by identity, so between the first and the last call nobody may write to it.
    """

    def __init__(self, linear: Int4Linear, sizes: Sequence[int]) -> None:
        self.linear = linear
        self.sizes = list(sizes)
        self._kept: tuple[torch.Tensor, Sequence[torch.Tensor]] | None = None

    def part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Columns of part `index` of the product with x."""
        kept = self._kept
        # The first part starts anew: x may be a buffer that was written to since.
        if index == 0 or kept is None or kept[0] is not x:
            kept = (x, self.linear.parts(x, self.sizes))
        self._kept = None if index == len(self.sizes) - 1 else kept
        return kept[1][index]


class Part(torch.nn.Module):
    """One of the linears that were fused; the weights are those of its sibling."""

    def __init__(self, product: Product, index: int) -> None:
        super().__init__()
        self.in_features, self.out_features = product.linear.in_features, product.sizes[index]
        # A plain object, so that the fused linear is a child of nobody but the parent of all parts.
        self._product = product
        self._index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """out[..., n of the part] of x[..., k]."""
        return self._product.part(x, self._index)

    def extra_repr(self) -> str:
        """Which columns of the product it is."""
        start = sum(self._product.sizes[: self._index])
        return f"columns {start} to {start + self.out_features - 1} of the fused linear beside it"


def parts(linear: Int4Linear, sizes: Sequence[int]) -> Iterator[Part]:
    """The parts of a linear whose rows are those of the parts, `sizes` of each, in order."""
    product = Product(linear, sizes)
    return (Part(product, index) for index in range(len(sizes)))


def concatenated(weights: Sequence[QuantizedWeight], layer: Layer) -> QuantizedWeight:
    """The rows of all weights, which have the numbers of the layer but for n."""
    zeros = [weight.zeros for weight in weights if weight.zeros is not None]
    return QuantizedWeight(
        layer,
        torch.cat([weight.q for weight in weights]),
        torch.cat([weight.scales for weight in weights], 1),
        torch.cat(zeros, 1) if zeros else None,
    )


def concatenated_bias(biases: Sequence[torch.Tensor | None], layers: Sequence[Layer]) -> torch.Tensor | None:
    """The biases of all layers, zeros for one that has none; None if none has."""
    known = next((bias for bias in biases if bias is not None), None)
    if known is None:
        return None
    both = zip(biases, layers, strict=True)
    return torch.cat([known.new_zeros(layer.n) if bias is None else bias for bias, layer in both])
