"""A forest of regression trees: evaluated with numpy, and kept as text of JSON.

The trees are oblivious: all nodes of a level ask the same question, so that a row's leaf is the number that
its answers make as bits (Kohavi and Li, "Oblivious Decision Trees", 1995).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS = 32767
"""Leaves are kept as whole numbers of steps, as many each way."""


@dataclass(frozen=True, eq=False)
class Forest:
    """The sum of `base` and a leaf of each tree.

    `columns[q]` and `limits[q]` are question q: whether a row has more than the limit in the column.
    `questions[tree, level]` names the questions of the trees, the first for the highest bit of the leaf in
    `leaves[tree, leaf]`.
    """

    base: float
    columns: NDArray[np.int64]
    limits: Floats
    questions: NDArray[np.int64]
    leaves: Floats

    def values(self, rows: Floats) -> Floats:
        """One value for each row; `rows` is [row, column]."""
        if not self.questions.size:
            return np.full(len(rows), self.base)
        columns = np.ascontiguousarray(rows.T)
        answers = (columns[self.columns] > self.limits[:, None]).view(np.uint8)
        depth = self.questions.shape[1]
        places = np.zeros((len(self.questions), len(rows)), np.uint8)
        for level in range(depth):
            np.left_shift(places, 1, out=places)
            np.bitwise_or(places, answers[self.questions[:, level]], out=places)
        starts = np.arange(len(self.questions))[:, None] << depth
        found = self.leaves.ravel().take(starts + places)
        return np.asarray(found.sum(axis=0) + self.base)

    def as_row(self) -> dict[str, Any]:
        """What JSON can hold; leaves are rounded."""
        step = float(np.abs(self.leaves).max(initial=0.0)) / _STEPS or 1.0
        return {
            "base": self.base,
            "columns": self.columns.tolist(),
            "limits": [float(f"{limit:.7g}") for limit in self.limits],
            "depth": self.questions.shape[1],
            "questions": _text(self.questions.astype("<u2")),
            "step": step,
            "leaves": _text(np.round(self.leaves / step).astype("<i2")),
        }

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Forest:
        """What `as_row` made.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        depth = int(row["depth"])
        questions = np.frombuffer(b64decode(row["questions"]), "<u2").astype(np.int64).reshape(-1, depth)
        leaves = np.frombuffer(b64decode(row["leaves"]), "<i2").reshape(len(questions), 1 << depth)
        columns, limits = np.array(row["columns"], np.int64), np.array(row["limits"], np.float64)
        if columns.shape != limits.shape or (questions.size and questions.max() >= len(columns)):
            raise ValueError("its trees ask questions that it does not have")
        return cls(float(row["base"]), columns, limits, questions, leaves * float(row["step"]))


def _text(array: NDArray[Any]) -> str:
    return b64encode(array.tobytes()).decode("ascii")
