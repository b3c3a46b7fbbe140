"""The tuned linears of a loaded model: which plans they run, and how these follow the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from autotune.models.report import Report
from autotune.runtime.linear import Int4Linear
from autotune.runtime.plans import LayerPlans, renew_plans
from autotune.values.errors import FormatError


def linears_of(model: torch.nn.Module) -> list[Int4Linear]:
    """Every tuned linear inside the model."""
    return [module for module in model.modules() if isinstance(module, Int4Linear)]


def plans_in(model: Any) -> list[LayerPlans]:
    """The distinct plans that the model's linears run.

    Raises:
        FormatError: it is no model, or none of its linears is tuned; the message says what to do.
    """
    if not isinstance(model, torch.nn.Module):
        raise FormatError(
            f"{type(model).__name__} is neither a model nor shapes; give a torch.nn.Module, a Layer, or a "
            "text as n=4096,k=4096"
        )
    found = list(dict.fromkeys(linear.plans for linear in linears_of(model)))
    if not found:
        raise FormatError(
            f"{type(model).__name__} has no Int4Linear; load it by autotune.load, or call "
            "autotune.apply(model) first"
        )
    return found


def renew(model: torch.nn.Module, plans: Sequence[LayerPlans]) -> None:
    """Have these plans of the model, and all that are alike, look their layers up again.

    The model's `autotune_report`, where it has one, says what runs from now on.

    Raises:
        CompileError, LaunchError, DeviceError: as `renew_plans`.
    """
    renew_plans(plans)
    report = getattr(model, "autotune_report", None)
    if isinstance(report, Report):
        now = {(each.layer, each.device.torch_name): each.answers for each in plans}
        model.autotune_report = replace(  # type: ignore[assignment]
            report,
            layers=tuple(
                replace(each, answers=now.get((each.layer, each.device), each.answers))
                for each in report.layers
            ),
        )
