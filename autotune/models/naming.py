"""Where the tensors of a checkpoint go in the model that transformers makes of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Place:
    """The name that a tensor has in the model; `merged` where it is only a part of what has that name."""

    name: str
    merged: bool


class Naming:
    """The names that transformers gives to a checkpoint's tensors, by its own rules.

    Made while the model, on the meta device, still has all its parameters.
    """

    def __init__(self, model: Any) -> None:
        # Imported late, so that who lacks transformers is told how to get it.
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        self._rename = rename_source_key
        conversions = get_model_conversion_mapping(model)
        self._renamings = [rule for rule in conversions if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in conversions if isinstance(rule, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._held = model.state_dict()
        self._ignored = [re.compile(rule) for rule in model._keys_to_ignore_on_load_unexpected or ()]

    def place(self, name: str) -> Place:
        """Where the tensor goes; that need not be in the model."""
        renamed, converter = self._rename(name, self._renamings, self._converters, self._prefix, self._held)
        if renamed not in self._held and name in self._held:
            return Place(name, merged=False)
        return Place(renamed, converter is not None)

    def holds(self, name: str) -> bool:
        """Whether the model has a tensor of that name."""
        return name in self._held

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the model's tensor of that name."""
        return tuple(self._held[name].shape)

    def leaves_out(self, name: str) -> bool:
        """Whether the model class has no use for tensors of that name, and says so."""
        return any(rule.search(name) for rule in self._ignored)
