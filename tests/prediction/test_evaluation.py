"""What is lost by choices: by hand, of a few timings."""

from __future__ import annotations

import fitted
import pytest
from real_families import CPU_FAMILY
from store_samples import H200

from autotune.prediction.evaluation import Losses, expected, kept, picks, unseen
from autotune.prediction.fitting import Timing
from autotune.prediction.predictor import Predictor
from autotune.prediction.pruning import far
from autotune.prediction.saving import saving_us
from autotune.values.config import Config
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


SPACE = fitted.space()


def test_what_is_kept_of_a_sweep_is_what_is_predicted_to_be_near_and_the_default() -> None:
    """Times against the prediction: of what is left out the slowest to be expected is the fastest."""
    predictor = Predictor(fitted.fit_of({SPACE[0].family: 1.0}, ()), H200)
    timings = [Timing(fitted.PROBLEM, config, 100.0 - place) for place, config in enumerate(SPACE)]
    (found,) = kept(timings, predictor)
    left_out = far(predictor, fitted.PROBLEM, SPACE)
    last = max(place for place, config in enumerate(SPACE) if config not in left_out)
    assert (found.pick.config, found.kept, found.configs) == (SPACE[last], last + 1, len(SPACE))
    assert found.pick.loss == pytest.approx((100.0 - last) / (101.0 - len(SPACE)) - 1)


def test_what_is_expected_stands_beside_what_was_found() -> None:
    predictor = Predictor(fitted.fit_of({SPACE[0].family: 1.0}, (SPACE[0], SPACE[-1])), H200)
    timings = [Timing(fitted.PROBLEM, config, us) for config, us in ((SPACE[0], 10.0), (SPACE[-1], 8.0))]
    (found,) = expected(picks(lambda _: [SPACE[0]], timings), timings, predictor)
    assert found.found == pytest.approx(0.2)
    assert found.expected == saving_us(predictor, fitted.PROBLEM, SPACE[0]) / 10.0  # type: ignore[operator]
