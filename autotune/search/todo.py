"""What a sweep or a daemon measures of a problem now: what is missing, less what is predicted to be slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autotune.families import registry
from autotune.prediction.pruning import far
from autotune.search.fleet import Task
from autotune.search.incremental import candidates_to_do, last_record, neighbours, wanted
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import Device
from autotune.values.extra import TIMES_ONLY, Extra
from autotune.values.layer import Problem
from autotune.values.record import DEFAULT_MODE, Environment, Mode, Trial

if TYPE_CHECKING:
    from autotune.prediction.predictor import Predictor


def task_to_do(
    problem: Problem,
    device: Device,
    store: Store,
    environment: Environment,
    mode: Mode,
    predictor: Predictor,
    extra: Extra = TIMES_ONLY,
) -> Task | None:
    """What is to be measured of the problem; None where nothing is.

    What is predicted to be slow is `pruned`: it has a trial that says so, and so is not looked at again. Fits
    are of times in DEFAULT_MODE, so in other modes nothing is pruned; nor is what did best at neighbours.
    """
    more = wanted(last_record(problem, device, store, environment), device, extra)
    around = neighbours(problem, device, store, environment, mode)
    candidates = candidates_to_do(problem, device, store, environment, mode, more, around)
    if candidates is None:
        return None
    may_prune = mode == DEFAULT_MODE and not around
    pruned = _pruned(problem, candidates, predictor) if may_prune else []
    left_out = {trial.config for trial in pruned}
    worth = [config for config in candidates if config not in left_out]
    return Task(problem, worth, mode, more, [record.problem.m for record in around], pruned)


def _pruned(problem: Problem, candidates: Sequence[Config], predictor: Predictor) -> list[Trial]:
    """Trials of those not worth timing, which the first two, the default and the incumbent, always are."""
    reasons = far(predictor, problem, candidates)
    return [
        Trial(
            problem,
            config,
            "pruned",
            error=reasons[config],
            mode=DEFAULT_MODE,
            source_hash=registry.kernel_hash(config, problem, predictor.device),
        )
        for config in candidates[2:]
        if config in reasons
    ]
