"""What is lost by choices: by hand, of a few timings."""

from __future__ import annotations

from dataclasses import replace

import pytest
from real_families import CPU_FAMILY

from autotune.prediction.evaluation import Losses, halved, picks, unseen
from autotune.prediction.fitting import Timing
from autotune.prediction.predictor import Predictor
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem

SMALL, LARGE = (Problem(Layer(n=n, k=256, group_size=64), 4) for n in (64, 512))
FIRST, SECOND, THIRD = (
    Config.of(CPU_FAMILY.name, tile_n=tile_n, split_k=1, unpack_m=0, threads=1) for tile_n in (16, 32, 64)
)
TIMINGS = [
    *(Timing(SMALL, config, us) for config, us in ((FIRST, 10.0), (SECOND, 12.0))),
    *(Timing(LARGE, config, us) for config, us in ((FIRST, 30.0), (SECOND, 20.0))),
]


def test_a_choice_loses_its_time_over_the_best() -> None:
    found = {each.problem: each for each in picks(lambda _: [FIRST], TIMINGS)}
    assert (found[SMALL].loss, found[LARGE].loss) == (0.0, 0.5)
    assert all(each.timed for each in found.values())


def test_an_untimed_choice_is_judged_by_the_next_and_counted() -> None:
    (small, large) = picks(lambda _: [THIRD, SECOND], TIMINGS)
    assert (small.config, small.loss, small.timed) == (SECOND, pytest.approx(0.2), False)
    assert Losses.of([small, large]).untimed == 2
    assert picks(lambda _: [THIRD], TIMINGS) == []


def test_losses_are_summed_up() -> None:
    losses = Losses.of(picks(lambda _: [FIRST], TIMINGS))
    assert (losses.mean, losses.worst, losses.count, losses.untimed) == (0.25, 0.5, 2, 0)
    assert losses.most == pytest.approx(0.475)


def test_a_size_is_left_out_in_every_scheme() -> None:
    other = Timing(Problem(Layer(n=64, k=256, group_size=32), 4), FIRST, 11.0)
    seen, own = unseen([*TIMINGS, other], {(64, 256)})
    assert seen == TIMINGS[2:]
    assert own == [*TIMINGS[:2], other]


def test_half_a_sweep_keeps_what_is_estimated_to_be_fast() -> None:
    """Without a fit the estimates decide: two threads are estimated to be faster than one."""
    problem = Problem(Layer(n=512, k=1024, group_size=64), 4)
    both = Config.of(CPU_FAMILY.name, tile_n=64, split_k=1, unpack_m=0, threads=2)
    timings = [Timing(problem, FIRST, 5.0), Timing(problem, both, 6.0)]
    (pick,) = halved(timings, Predictor(None, replace(cpu_device(), cores=2)))
    assert (pick.config, pick.loss) == (both, pytest.approx(0.2))
