"""What `benchmarks/method.py` times in the place of a slower kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
from places import BENCHMARKS

from autotune.values.device import cpu_device
from autotune.values.layer import Layer


@pytest.mark.parametrize("m", [1, 64])
def test_every_sample_has_the_calls_that_are_made_twice(monkeypatch: pytest.MonkeyPatch, m: int) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import method

    layer = Layer(64, 128, group_size=64)
    bench = method.Bench(layer, replace(cpu_device(), l2_bytes=4 * layer.weight_bytes))
    calls = len(bench.operands.rotated(bench.operands.activations(m)))
    assert calls > 0
    assert calls % method.CALLS == 0
