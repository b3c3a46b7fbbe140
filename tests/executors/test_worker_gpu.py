"""Kernels that break the device or never end: each fails with its reason, and the others are measured."""

from __future__ import annotations

import crashing
import pytest
from crashing import gpu_config_of

from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.jit import compiler
from autotune.values.device import find_device
from autotune.values.layer import Layer, Problem

pytestmark = pytest.mark.gpu

PROBLEM = Problem(Layer(n=512, k=1024), 1)
DEFAULT, GOOD = gpu_config_of(crashing.NOTHING, calls=50), gpu_config_of(crashing.NOTHING)


@pytest.fixture
def tuned_with(monkeypatch, tmp_path):
    """What became of the default, a config with this act and a good one, and whether the worker was kept."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(registry, "families", crashing.families)
    device = find_device("cuda")
    unit = crashing.gpu_unit(device)
    cubins = {unit.key: compiler.build(unit)}

    def tuned(act):
        with LocalExecutor(device, limit_s=10.0, entry=crashing.work) as executor:
            executor.tune(PROBLEM, [DEFAULT, GOOD], cubins)
            before = executor.worker_pid
            result = executor.tune(PROBLEM, [DEFAULT, gpu_config_of(act), GOOD], cubins)
            return result, executor.worker_pid == before

    return tuned


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (crashing.ILLEGAL, "it left the device unusable: CUDA error: an illegal memory access"),
        (crashing.STOP, "it left the device unusable: CUDA error: "),
        (crashing.ENDLESS, "it did not end within 10 s"),
    ],
)
def test_a_kernel_that_breaks_the_device_fails_and_the_others_are_measured(tuned_with, act, reason):
    tuned, kept = tuned_with(act)
    trials = {trial.config: trial for trial in tuned.trials}
    assert trials[gpu_config_of(act)].status == "failed"
    assert trials[gpu_config_of(act)].error.startswith(reason)
    assert [trials[config].status for config in (DEFAULT, GOOD)] == ["ok", "ok"]
    assert tuned.record.config == GOOD
    assert not kept


def test_a_candidate_out_of_memory_fails_and_the_worker_goes_on(tuned_with):
    tuned, kept = tuned_with(crashing.NO_MEMORY)
    (failed,) = (trial for trial in tuned.trials if trial.status == "failed")
    assert failed.config == gpu_config_of(crashing.NO_MEMORY)
    assert "out of memory" in failed.error
    assert tuned.record.config == GOOD
    assert kept
