"""`Binary`: one or several yes/no labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyfm.shared.errors import DataError
from polyfm.shared.objectives.gather import global_mean
from polyfm.shared.training.targets.curve import Curve
from polyfm.shared.training.targets.target import OTHER_CLASSES, Target, average_columns, given_columns


@dataclasses.dataclass
class Binary(Target):
    """One or several yes/no labels, any of them missing: weighted binary cross-entropy."""

    positive_weight: list[float] = dataclasses.field(default_factory=list)
    """Negatives per positive in training, clipped to [1/20, 20]: rare positives count as much as common negatives."""
    threshold: list[float] = dataclasses.field(default_factory=list)
    """Probability at or above which a label is said to be present; chosen on validation data for the best F1."""

    primary = "auroc"
    chooses = True

    @classmethod
    def fit(cls, names: list[str], values: np.ndarray) -> Self:
        """See `Target.fit`."""
        wrong = ~np.isnan(values) & (values != 0) & (values != 1)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise DataError(
                f"label {values[row, column]:g} in column {names[column]!r} is neither 0 nor 1",
                remedy="Use --model.kind regression, or a column of 0 and 1",
            )
        positives, given = np.nansum(values, axis=0), (~np.isnan(values)).sum(axis=0)
        both = (positives > 0) & (positives < given)
        if not both.any():
            raise DataError(
                f"column {names[0]!r} has only one class among its {given[0]} training labels",
                remedy=OTHER_CLASSES,
            )
        # Of several columns some may have one class only: they stay, so that a set has the same columns in every split.
        weight = np.where(both, np.clip((given - positives) / np.maximum(positives, 1), 0.05, 20.0), 1.0)
        return cls(names=names, positive_weight=weight.tolist(), threshold=[0.5] * len(names))

    def loss(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See `Target.loss`."""
        given = ~values.isnan()
        losses = F.binary_cross_entropy_with_logits(
            outputs,
            values.nan_to_num(0.0).to(outputs.dtype),
            pos_weight=outputs.new_tensor(self.positive_weight),
            reduction="none",
        )
        return global_mean(losses[given])

    def decode(self, outputs: Tensor) -> Tensor:
        """See `Target.decode`: probabilities, corrected for the weights used in training."""
        # A weight w on positives moves the optimal logit by log w; undone here, so that probabilities are calibrated.
        return torch.sigmoid(outputs - outputs.new_tensor(self.positive_weight).log())

    def metrics(self, predictions: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """AUROC, AUPRC, and accuracy, F1, balanced accuracy, MCC at the threshold; mean over columns and each."""
        per_column: dict[str, dict[str, float]] = {}
        for name, threshold, (p, y) in zip(self.names, self.threshold, _columns(predictions, values), strict=True):
            said = p >= threshold
            found: dict[str, float] = {}
            if _both(y):
                found = Curve.of(p, y).metrics() | confusion_metrics(said, y)
                found["brier"] = float(np.mean((p - y) ** 2))
            if len(y):
                found["accuracy"] = float(np.mean(said == y))
            per_column[name] = found
        return average_columns(per_column)

    def score(self, predictions: np.ndarray, values: np.ndarray) -> float | None:
        """See `Target.score`."""
        columns = _columns(predictions, values)
        found = [Curve.of(p, y).metrics()["auroc"] for p, y in columns if _both(y)]
        return float(np.mean(found)) if found else None

    def answers(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """See `Target.answers`: ``NAME_class``, 1 at or above the label's threshold."""
        said = predictions >= np.array(self.threshold)
        return {f"{name}_class": column.astype(int) for name, column in zip(self.names, said.T, strict=True)}

    def choose(self, predictions: np.ndarray, values: np.ndarray) -> None:
        """See `Target.choose`: the threshold of the best F1, per column."""
        for column, (p, y) in enumerate(_columns(predictions, values)):
            if _both(y):
                self.threshold[column] = Curve.of(p, y).best_f1()

    def unchosen(self) -> Self:
        """See `Target.unchosen`: thresholds of one half."""
        return dataclasses.replace(self, threshold=[0.5] * len(self.names))


def _columns(predictions: np.ndarray, values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(m,) predictions and (m,) bool labels of each column, where labels are given."""
    return ((p, y == 1) for p, y in given_columns(predictions, values))


def _both(y: np.ndarray) -> bool:
    """Whether positives and negatives are there: without both, curves and thresholds are undefined."""
    return 0 < int(np.count_nonzero(y)) < len(y)


def confusion_metrics(said: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Balanced accuracy, F1 and Matthews' correlation of yes/no answers.

    Args:
        said: (n,) bool.
        y: (n,) bool, of both kinds.
    """
    tp, fp = float(np.sum(said & y)), float(np.sum(said & ~y))
    fn, tn = float(np.sum(~said & y)), float(np.sum(~said & ~y))
    spread = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "balanced_accuracy": (tp / (tp + fn) + tn / (tn + fp)) / 2,
        "f1": 2 * tp / (2 * tp + fp + fn),
        "mcc": (tp * tn - fp * fn) / spread if spread else 0.0,
    }
