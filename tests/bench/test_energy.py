"""The energy of a call: the arithmetic against a device that is known, the sweep on a real one."""

from __future__ import annotations

import pytest

from autotune.bench import energy
from autotune.bench.monitor import monitor_for
from autotune.values.device import find_device

WATTS, CALL_US, CALLS, STEP_S, READ_S, HOST_S = 400.0, 50.0, 20, 0.1, 0.004, 2e-5


class KnownDevice:
    """Takes WATTS while it computes and nothing else; its counter rises every STEP_S of its own time."""

    calls = CALLS

    def __init__(self) -> None:
        self.now = self._free_at = self._risen_at = 0.0
        self._busy_s = self._told = 0.0

    def perf_counter(self) -> float:
        return self.now

    def start(self) -> None:
        self.now += HOST_S
        self._free_at = max(self._free_at, self.now) + CALLS * CALL_US * 1e-6
        self._busy_s += CALLS * CALL_US * 1e-6

    def sample_us(self) -> float:
        self.now = max(self.now, self._free_at) + HOST_S
        return CALL_US

    def joules(self) -> float:
        self.now += READ_S
        if self.now >= self._risen_at + STEP_S:
            self._risen_at += STEP_S * int((self.now - self._risen_at) / STEP_S)
            self._told = WATTS * (self._busy_s - max(0.0, self._free_at - self._risen_at))
        return self._told


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> KnownDevice:
    known = KnownDevice()
    monkeypatch.setattr(energy, "time", known)
    return known


def test_energy_is_power_times_the_time_of_a_call(device: KnownDevice) -> None:
    found = energy.measure_energy(device, device.joules)
    assert found is not None
    assert found.joules.low <= found.joules.median <= found.joules.high
    # Pauses of the host make the power less and the time of a call longer, and leave their product.
    assert found.call_us > CALL_US
    assert found.joules.median == pytest.approx(WATTS * CALL_US * 1e-6, rel=0.03)


@pytest.mark.parametrize("told", [None, 5.0], ids=["nothing", "the same"])
def test_without_a_counter_that_rises_there_is_no_energy(device: KnownDevice, told: float | None) -> None:
    def counter() -> float | None:
        device.joules()
        return told

    assert energy.measure_energy(device, counter) is None


def test_a_cpu_tells_no_energy() -> None:
    assert monitor_for(find_device("cpu")).joules() is None
