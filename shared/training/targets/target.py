"""`Target`: what every kind of label says about itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from torch import Tensor

OTHER_CLASSES = "Split otherwise (--data.split random, or another --seed_everything if it is) or choose another column"
"""Remedy where training labels are of one class only."""


@dataclasses.dataclass
class Target:
    """Base. Holds primitives only, so that it can stand in a checkpoint."""

    names: list[str]
    """Of the label columns."""

    higher_is_better = True
    """Of the primary metric."""
    chooses = False
    """Whether `choose` chooses anything."""

    @property
    def primary(self) -> str:
        """The metric that chooses the best checkpoint and says who is better."""
        raise TypeError(f"{type(self).__name__} has no primary metric")

    @classmethod
    def fit(cls, names: list[str], values: np.ndarray) -> Self:
        """Learn scale, classes or weights from the training labels.

        Args:
            names: Of the label columns.
            values: (n, tasks), NaN where missing.
        """
        raise TypeError(f"{cls.__name__} has no fit")

    @property
    def outputs(self) -> int:
        """Numbers that the head returns."""
        return len(self.names)

    def loss(self, outputs: Tensor, values: Tensor) -> Tensor:
        """Mean over the given labels of all processes, of which it is this one's share (`Ranks.mean`); NaN is missing.

        Args:
            outputs: (B, outputs) of the head.
            values: (B, tasks) labels in the file's own unit.
        """
        raise TypeError(f"{type(self).__name__} has no loss")

    def decode(self, outputs: Tensor) -> Tensor:
        """From the head's outputs to what a user reads (own unit, probabilities).

        Args:
            outputs: (B, outputs).
        """
        raise TypeError(f"{type(self).__name__} has no decode")

    def metrics(self, predictions: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """Metrics over a whole part; a metric that is undefined (one class, one row) is left out.

        Args:
            predictions: (n, outputs), decoded.
            values: (n, tasks), NaN where missing.
        """
        raise TypeError(f"{type(self).__name__} has no metrics")

    def score(self, predictions: np.ndarray, values: np.ndarray) -> float | None:
        """The primary metric alone; None where it is undefined.

        Args:
            predictions: (n, outputs), decoded.
            values: (n, tasks), NaN where missing.
        """
        return self.metrics(predictions, values).get(self.primary)

    def answers(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """What is said in the end, by column: classes for probabilities, nothing where the numbers say it all.

        Args:
            predictions: (n, outputs), decoded.
        """
        return {}

    def choose(self, predictions: np.ndarray, values: np.ndarray) -> None:
        """Choose what is chosen on validation data (thresholds); nothing by default.

        Args:
            predictions: (n, outputs), decoded.
            values: (n, tasks).
        """

    def unchosen(self) -> Self:
        """A copy as it was before `choose`: another predictor of the same labels is judged at its own thresholds."""
        return dataclasses.replace(self)

    def state(self) -> dict[str, Any]:
        """Primitives for the checkpoint."""
        return {"kind": type(self).__name__, **dataclasses.asdict(self)}


def given_columns(predictions: np.ndarray, values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predictions and labels of each column, rows without a label left out.

    Args:
        predictions: (n, tasks), decoded.
        values: (n, tasks), NaN where missing.
    """
    for p, y in zip(predictions.T, values.T, strict=True):
        given = ~np.isnan(y)
        yield p[given], y[given]


def average_columns(per_column: dict[str, dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the columns that have it; with several columns, each one's too.

    Args:
        per_column: Metrics by column.
    """
    names = dict.fromkeys(metric for found in per_column.values() for metric in found)
    out = {m: float(np.mean([found[m] for found in per_column.values() if m in found])) for m in names}
    if len(per_column) > 1:
        out |= {f"{column}/{m}": value for column, found in per_column.items() for m, value in found.items()}
    return out
