"""What a layer says of itself."""

from __future__ import annotations

import pytest
import torch

from autotune.layouts import random_weight
from autotune.values.layer import Layer
from autotune.values.scheme import DTYPES


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_its_bytes_are_those_of_the_tensors(dtype: str, zero_point: bool) -> None:
    """Weights and zeros have half a byte each, scales what their dtype has: floors count them."""
    layer = Layer(64, 256, group_size=64, dtype=dtype, zero_point=zero_point)
    weight = random_weight(layer, torch.Generator().manual_seed(0))
    zeros = 0 if weight.zeros is None else weight.zeros.numel() / 2
    assert layer.weight_bytes == weight.q.numel() / 2 + weight.scales.nbytes + zeros
