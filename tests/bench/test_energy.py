"""The energy of a call: the arithmetic against a device that is known, the sweep on a real one."""

from __future__ import annotations

import time

import pytest

from autotune.bench.energy import measure_energy
from autotune.bench.monitor import monitor_for
from autotune.values.device import find_device

WATTS, CALL_US, CALLS, STEP_S = 400.0, 50.0, 20, 0.02


class KnownDevice:
    """Takes WATTS while it computes, in real time, and its counter moves every STEP_S."""

    calls = CALLS

    def __init__(self) -> None:
        self._busy_until = self._begin = time.perf_counter()

    def start(self) -> None:
        self._busy_until = max(self._busy_until, time.perf_counter()) + CALLS * CALL_US * 1e-6

    def sample_us(self) -> float:
        while time.perf_counter() < self._busy_until:
            pass
        return CALL_US

    def joules(self) -> float:
        steps = int((time.perf_counter() - self._begin) / STEP_S)
        return WATTS * steps * STEP_S


def test_energy_is_power_times_the_time_of_a_call() -> None:
    device = KnownDevice()
    found = measure_energy(device, device.joules)
    assert found is not None
    assert found.power_w == pytest.approx(WATTS, rel=0.1)
    assert found.joules.median == pytest.approx(found.power_w * found.call_us * 1e-6)
    assert found.joules.low <= found.joules.median <= found.joules.high
    # The host's own work between batches is part of the run.
    assert found.joules.median >= WATTS * CALL_US * 1e-6 * 0.9


@pytest.mark.parametrize("counter", [lambda: None, lambda: 5.0], ids=["none", "stands still"])
def test_without_a_counter_there_is_no_energy(counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.bench.energy._PATIENCE_S", 0.0)
    assert measure_energy(KnownDevice(), counter) is None


def test_a_cpu_tells_no_energy() -> None:
    assert monitor_for(find_device("cpu")).joules() is None
