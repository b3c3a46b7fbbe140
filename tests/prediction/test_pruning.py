"""What a sweep leaves out by prediction, of times that are known."""

from __future__ import annotations

from fitted import PROBLEM, estimate_us, fit_of, space
from store_samples import H200

from autotune.families import registry
from autotune.prediction.predictor import Predictor
from autotune.prediction.pruning import far
from autotune.values.config import Config

SPACE = space()
OWN = SPACE[0].family


def other_family() -> Config:
    """A config of another family for the same problem."""
    families = registry.families_of(H200)
    return next(found[0] for each in families if each.name != OWN and (found := each.space(PROBLEM, H200)))


def test_the_first_two_fifths_of_what_is_near_are_kept() -> None:
    left_out = far(Predictor(fit_of({OWN: 2.0}, ()), H200), PROBLEM, SPACE)
    kept = [config for config in SPACE if config not in left_out]
    near = [config for config in SPACE if estimate_us(config) <= 1.15 * estimate_us(SPACE[0])]
    assert kept == SPACE[: max(4, min(len(near), -(-len(SPACE) * 2 // 5)))]
    slowest, fastest = 2 * estimate_us(SPACE[-1]), 2 * estimate_us(SPACE[0])
    assert left_out[SPACE[-1]] == f"not timed: {slowest:.2f} us predicted, {fastest:.2f} us for the fastest"


def test_four_are_kept_however_far() -> None:
    few = [SPACE[0], *SPACE[-5:]]
    assert estimate_us(few[1]) > 1.15 * estimate_us(few[0])
    left_out = far(Predictor(fit_of({OWN: 1.0}, ()), H200), PROBLEM, few)
    assert [config for config in few if config not in left_out] == few[:4]


def test_a_family_that_is_near_is_kept_by_its_best() -> None:
    other = other_family()
    as_near = 1.1 * estimate_us(SPACE[0]) / estimate_us(other)
    for factor, kept in ((as_near, True), (1.5 * as_near, False)):
        predictor = Predictor(fit_of({OWN: 1.0, other.family: factor}, ()), H200)
        many = [config for config in SPACE if estimate_us(config) <= 1.05 * estimate_us(SPACE[0])]
        assert (other not in far(predictor, PROBLEM, [*many, other])) == kept


def test_without_a_fit_that_is_sure_of_its_family_nothing_is_left_out() -> None:
    other = other_family()
    assert far(Predictor(fit_of({OWN: 1.0}, (), spread=(0.8, 1.1)), H200), PROBLEM, SPACE) == {}
    assert far(Predictor(None, H200), PROBLEM, SPACE) == {}
    assert far(Predictor(fit_of({other.family: 0.01}, ()), H200), PROBLEM, [*SPACE, other]) == {}
