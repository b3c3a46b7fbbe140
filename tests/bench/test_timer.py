"""Timers: which weights they touch, in which order, and that a sample is a time per call."""

from __future__ import annotations

import gc
import time
from dataclasses import replace

import pytest
import torch

from autotune.bench.monitor import monitor_for
from autotune.bench.operands import Activation, Operands
from autotune.bench.timer import time_round, timer_for
from autotune.values.device import cpu_device, find_device
from autotune.values.layer import Layer
from autotune.values.record import MODES

LAYER, GPU_LAYER = Layer(64, 64, group_size=64), Layer(1024, 4096)
"""Copies of the second exceed a GPU's last cache before there are many."""


class Noting:
    """A plan that notes the weights it is given, and takes a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.weights: list[int] = []

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return 0

    def run(self, x, weight, bias, out, workspace) -> None:  # noqa: ARG002
        self.weights.append(weight.qweight.data_ptr())
        out.copy_(x.sum(1, keepdim=True).expand_as(out))
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass


def timer_of(plan, operands, mode="graph", m=2):
    return timer_for(plan, operands, operands.activations(m), mode)


@pytest.fixture
def operands():
    return Operands.random(LAYER, cpu_device())


def test_copies_exceed_three_times_the_last_cache_at_different_addresses(operands):
    assert len({copy.qweight.data_ptr() for copy in operands.copies}) == len(operands.copies)
    assert sum(copy.nbytes for copy in operands.copies) > 3 * cpu_device().l2_bytes


def test_timers_share_one_rotation_so_that_none_meets_what_another_has_just_read(operands):
    plans = [Noting(0.0005), Noting(0.0005)]
    timers = [timer_of(plan, operands) for plan in plans]
    for plan in plans:
        plan.weights.clear()
    time_round(timers)
    touched = [weight for plan in plans for weight in plan.weights]
    assert len(touched) == len(set(touched))


def test_slow_first_calls_do_not_decide_how_many_a_sample_has(operands, monkeypatch):
    """Who made fewer calls at a time would pay more for each."""
    now_ns = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now_ns[0])

    class Counting(Noting):
        def run(self, x, weight, bias, out, workspace) -> None:
            super().run(x, weight, bias, out, workspace)
            now_ns[0] += 10_000_000 if len(self.weights) <= self.slow else 100_000

    calls = []
    for slow in (0, 2):
        plan = Counting()
        plan.slow = slow
        timer = timer_of(plan, operands)
        before = len(plan.weights)
        assert timer.sample_us() == 100
        calls.append(len(plan.weights) - before)
    assert calls[0] == calls[1]


def test_a_hot_timer_stays_with_one_weight(operands):
    plan = Noting()
    timer_of(plan, operands, "hot").sample_us()
    assert len(plan.weights) > 1
    assert len(set(plan.weights)) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_is_a_time_per_call(operands, mode):
    timer = timer_of(Noting(0.003), operands, mode)
    assert timer.sample_us() >= 3000


def test_a_cpu_tells_no_clock():
    assert monitor_for(cpu_device()).read().clock_mhz is None


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_gpu_timers_run_every_mode(mode):
    operands = Operands.random(GPU_LAYER, find_device("cuda"))
    plan = Noting()
    timer = timer_of(plan, operands, mode)
    (sample,) = time_round([timer])
    assert sample > 0
    assert len(set(plan.weights)) == (1 if mode == "hot" else min(len(plan.weights), len(operands.copies)))


class Doubling(Noting):
    """Leaves in out what it finds in x, and twice that in x."""

    def run(self, x, weight, bias, out, workspace) -> None:  # noqa: ARG002
        out.copy_(x[:, :1].expand_as(out))
        x.mul_(2)


@pytest.mark.gpu
def test_what_feeds_a_call_leaves_x_as_the_call_ahead_left_it():
    operands = Operands.random(GPU_LAYER, find_device("cuda"))
    activation = operands.activations(1)[0]
    activation.x.fill_(2.0**-20)
    timer = timer_for(Doubling(), replace(operands, copies=operands.copies[:3]), [activation], "model")
    before = float(activation.x[0, 0])
    timer.start()
    timer.sample_us()
    assert float(activation.out[0, 0]) == 4 * before
    assert float(activation.x[0, 0]) == 8 * before


@pytest.mark.gpu
def test_a_graph_keeps_alive_what_it_reads_and_writes():
    operands = Operands.random(GPU_LAYER, find_device("cuda"))
    timers = [timer_of(Noting(), operands, m=512) for _ in range(20)]
    gc.collect()
    torch.cuda.empty_cache()
    assert all(sample > 0 for sample in time_round(timers))


@pytest.mark.gpu
def test_a_gpu_tells_its_clock_and_does_not_count_us_as_others():
    torch.zeros(1, device="cuda")
    reading = monitor_for(find_device("cuda")).read()
    assert reading.clock_mhz > 0
    assert reading.others == ()


def test_few_copies_are_rotated_where_x_and_out_fill_the_cache(operands):
    few, many = operands.activations(1), operands.activations(64)
    huge = [Activation(torch.empty(4 * cpu_device().l2_bytes, dtype=torch.int8), many[0].out)]
    assert len(operands.rotated(few)) > len(operands.rotated(many)) > len(operands.rotated(huge)) == 2
    small = replace(cpu_device(), l2_bytes=operands.copies[0].nbytes // 4)
    assert len(replace(operands, device=small).rotated(huge)) == 1
    left = operands.rotated(many)
    touched = sum(tensor.nbytes for tensor in many[0])
    assert sum(copy.nbytes for copy in left) + touched > 3 * cpu_device().l2_bytes
