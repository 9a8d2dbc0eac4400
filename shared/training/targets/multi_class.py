"""`MultiClass`: one label of several classes."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyfm.shared.errors import DataError
from polyfm.shared.objectives.gather import global_mean
from polyfm.shared.training.targets.target import OTHER_CLASSES, Target


@dataclasses.dataclass
class MultiClass(Target):
    """One label of several classes: cross-entropy, weighted against imbalance."""

    classes: list[str] = dataclasses.field(default_factory=list)
    """Names, in the order of the outputs; labels are their indices."""
    class_weight: list[float] = dataclasses.field(default_factory=list)
    """n / (classes · n_class), square-rooted: rare classes count more without drowning the common."""

    primary = "macro_f1"

    @property
    def outputs(self) -> int:
        """See `Target.outputs`."""
        return len(self.classes)

    @classmethod
    def fit(cls, names: list[str], values: np.ndarray, classes: list[str] | None = None) -> Self:
        """See `Target.fit`.

        Args:
            names: The one label column.
            values: (n, 1) class indices, NaN where missing.
            classes: Names of the classes; the numbers themselves if there are none.
        """
        if len(names) != 1:
            raise DataError(f"several classes can be predicted for one column, not for {len(names)}")
        given = values[~np.isnan(values)]
        wrong = given[(given < 0) | (given % 1 != 0)]
        if len(wrong):
            raise DataError(
                f"label {wrong[0]:g} in column {names[0]!r} is no class: expected 0, 1, 2 …",
                remedy="Use --model.kind regression, or number the classes",
            )
        classes = classes or [str(i) for i in range(int(given.max(initial=0)) + 1)]
        count = np.bincount(given.astype(int), minlength=len(classes))
        if (count > 0).sum() < 2:
            raise DataError(
                f"column {names[0]!r} has only one class among its {len(given)} training labels", remedy=OTHER_CLASSES
            )
        weight = np.sqrt(len(given) / (len(classes) * np.maximum(count, 1)))
        return cls(names=names, classes=classes, class_weight=weight.tolist())

    def loss(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See `Target.loss`. A class that training labels lack cannot be told: in validation it counts as missing."""
        values = values[:, 0]
        given = ~values.isnan() & (values < self.outputs)
        labels = torch.where(given, values, -100.0).long()
        weight = outputs.new_tensor(self.class_weight)
        losses = F.cross_entropy(outputs, labels, weight=weight, reduction="none")
        return global_mean(losses[given])

    def decode(self, outputs: Tensor) -> Tensor:
        """See `Target.decode`: probabilities, corrected for the weights used in training."""
        return torch.softmax(outputs - outputs.new_tensor(self.class_weight).log(), dim=-1)

    def answers(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """See `Target.answers`: ``NAME_class``, the name of the most probable one."""
        return {f"{self.names[0]}_class": np.array(self.classes)[predictions.argmax(-1)]}

    def metrics(self, predictions: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """Accuracy, F1 averaged over the classes that occur or were said, balanced accuracy."""
        given = ~np.isnan(values[:, 0])
        y, said = values[given, 0].astype(int), predictions[given].argmax(-1)
        if not len(y):
            return {}
        size = max(len(self.classes), int(y.max()) + 1)
        right = np.bincount(y[said == y], minlength=size)
        true, told = np.bincount(y, minlength=size), np.bincount(said, minlength=size)
        seen = true + told > 0
        return {
            "accuracy": float(np.mean(said == y)),
            "macro_f1": float(np.mean(2 * right[seen] / (true + told)[seen])),
            "balanced_accuracy": float(np.mean(right[true > 0] / true[true > 0])),
        }
