"""What is predicted: the loss, the numbers a user reads, and the metrics, for each kind of label."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyfm.shared.errors import DataError, RecipeError


@dataclasses.dataclass
class Target:
    """Base. Holds primitives only, so that it can stand in a checkpoint."""

    names: list[str]
    """Of the label columns."""

    primary = ""
    """The metric that chooses the best checkpoint."""
    higher_is_better = True

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
        """Mean over given labels; missing ones (NaN) do not count.

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

    def choose(self, predictions: np.ndarray, values: np.ndarray) -> None:
        """Choose what is chosen on validation data (thresholds); nothing by default.

        Args:
            predictions: (n, outputs), decoded.
            values: (n, tasks).
        """

    def state(self) -> dict[str, Any]:
        """Primitives for the checkpoint."""
        return {"kind": type(self).__name__, **dataclasses.asdict(self)}


@dataclasses.dataclass
class Regression(Target):
    """Standardised mean squared error; metrics in the label's own unit."""

    mean: list[float] = dataclasses.field(default_factory=list)
    """Of the training labels, own unit."""
    scale: list[float] = dataclasses.field(default_factory=list)
    """Standard deviation of the training labels, own unit."""

    primary = "rmse"
    higher_is_better = False

    @classmethod
    def fit(cls, names: list[str], values: np.ndarray) -> Self:
        """See `Target.fit`."""
        for name, column in zip(names, values.T, strict=True):
            if np.isnan(column).all():
                raise DataError(f"column {name!r} has no label among the training rows")
        scale = np.nanstd(values, axis=0)
        return cls(
            names=names,
            mean=np.nanmean(values, axis=0).tolist(),
            scale=np.where(scale > 0, scale, 1.0).tolist(),
        )

    def loss(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See `Target.loss`."""
        mean, scale = outputs.new_tensor(self.mean), outputs.new_tensor(self.scale)
        given = ~values.isnan()
        error = (outputs - (values - mean) / scale).masked_fill(~given, 0.0)
        return error.square().sum() / given.sum().clamp(min=1)

    def decode(self, outputs: Tensor) -> Tensor:
        """See `Target.decode`: own unit."""
        return outputs * outputs.new_tensor(self.scale) + outputs.new_tensor(self.mean)

    def metrics(self, predictions: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """RMSE, MAE, R², Spearman; the mean over columns under the bare name, each column under its own."""
        per_column: dict[str, dict[str, float]] = {}
        for column, name in enumerate(self.names):
            given = ~np.isnan(values[:, column])
            p, y = predictions[given, column], values[given, column]
            found: dict[str, float] = {}
            if len(y):
                found["rmse"] = float(np.sqrt(np.mean((p - y) ** 2)))
                found["mae"] = float(np.mean(np.abs(p - y)))
            if len(y) > 1 and np.ptp(y) > 0:
                found["r2"] = float(1 - np.sum((p - y) ** 2) / np.sum((y - y.mean()) ** 2))
                if np.ptp(p) > 0:
                    found["spearman"] = float(np.corrcoef(ranks(p), ranks(y))[0, 1])
            per_column[name] = found
        return average_columns(per_column)


@dataclasses.dataclass
class Binary(Target):
    """One or several yes/no labels, any of them missing: weighted binary cross-entropy."""

    positive_weight: list[float] = dataclasses.field(default_factory=list)
    """Negatives per positive in training, clipped to [1/20, 20]: rare positives count as much as common negatives."""
    threshold: list[float] = dataclasses.field(default_factory=list)
    """Probability at or above which a label is said to be present; chosen on validation data for the best F1."""

    primary = "auroc"

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
                remedy="Choose another split (--data.split random) or another column",
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
        return losses.masked_fill(~given, 0.0).sum() / given.sum().clamp(min=1)

    def decode(self, outputs: Tensor) -> Tensor:
        """See `Target.decode`: probabilities, corrected for the weights used in training."""
        # A weight w on positives moves the optimal logit by log w; undone here, so that probabilities are calibrated.
        return torch.sigmoid(outputs - outputs.new_tensor(self.positive_weight).log())

    def metrics(self, predictions: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """AUROC, AUPRC, and accuracy, F1, balanced accuracy, MCC at the threshold; mean over columns and each."""
        per_column: dict[str, dict[str, float]] = {}
        for column, name in enumerate(self.names):
            given = ~np.isnan(values[:, column])
            p, y = predictions[given, column], values[given, column] == 1
            said = p >= self.threshold[column]
            found: dict[str, float] = {}
            if 0 < y.sum() < len(y):
                found = Curve.of(p, y).metrics() | confusion_metrics(said, y)
                found["brier"] = float(np.mean((p - y) ** 2))
            if len(y):
                found["accuracy"] = float(np.mean(said == y))
            per_column[name] = found
        return average_columns(per_column)

    def score(self, predictions: np.ndarray, values: np.ndarray) -> float | None:
        """See `Target.score`."""
        found = []
        for column in range(len(self.names)):
            given = ~np.isnan(values[:, column])
            p, y = predictions[given, column], values[given, column] == 1
            if 0 < y.sum() < len(y):
                found.append(Curve.of(p, y).metrics()["auroc"])
        return float(np.mean(found)) if found else None

    def choose(self, predictions: np.ndarray, values: np.ndarray) -> None:
        """See `Target.choose`: the threshold of the best F1, per column."""
        for column in range(len(self.names)):
            given = ~np.isnan(values[:, column])
            p, y = predictions[given, column], values[given, column] == 1
            if 0 < y.sum() < len(y):
                self.threshold[column] = Curve.of(p, y).best_f1()


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
            raise DataError(f"column {names[0]!r} has only one class among its {len(given)} training labels")
        weight = np.sqrt(len(given) / (len(classes) * np.maximum(count, 1)))
        return cls(names=names, classes=classes, class_weight=weight.tolist())

    def loss(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See `Target.loss`. A class that training labels lack cannot be told: in validation it counts as missing."""
        values = values[:, 0]
        given = ~values.isnan() & (values < self.outputs)
        labels = torch.where(given, values, -100.0).long()
        weight = outputs.new_tensor(self.class_weight)
        losses = F.cross_entropy(outputs, labels, weight=weight, reduction="none")
        return losses.sum() / given.sum().clamp(min=1)

    def decode(self, outputs: Tensor) -> Tensor:
        """See `Target.decode`: probabilities, corrected for the weights used in training."""
        return torch.softmax(outputs - outputs.new_tensor(self.class_weight).log(), dim=-1)

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


@dataclasses.dataclass(frozen=True)
class Curve:
    """What happens as the threshold falls over the predictions of one yes/no label: made once, read several ways."""

    cuts: np.ndarray
    """(m,) the different predictions, falling."""
    true: np.ndarray
    """(m,) positives at or above each."""
    false: np.ndarray
    """(m,) negatives at or above each."""

    @classmethod
    def of(cls, p: np.ndarray, y: np.ndarray) -> Self:
        """Sort once.

        Args:
            p: (n,) predictions.
            y: (n,) bool, of both kinds.
        """
        order = np.argsort(-p, kind="stable")
        p, true = p[order], np.cumsum(y[order])
        last = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)  # of equal predictions
        return cls(p[last], true[last], last + 1 - true[last])

    def metrics(self) -> dict[str, float]:
        """Area under the ROC curve, and average precision (the area under precision against recall, in steps)."""
        true, false = self.true / self.true[-1], self.false / self.false[-1]
        heights = (true + np.append(0.0, true[:-1])) / 2
        precision = self.true / (self.true + self.false)
        return {
            "auroc": float(np.sum(np.diff(false, prepend=0.0) * heights)),
            "auprc": float(np.sum(np.diff(true, prepend=0.0) * precision)),
        }

    def best_f1(self) -> float:
        """The threshold of the best F1; of several the highest."""
        f1 = 2 * self.true / (self.true + self.false + self.true[-1])
        return float(self.cuts[int(np.argmax(f1))])


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


KINDS: dict[str, type[Target]] = {"regression": Regression, "binary": Binary, "multiclass": MultiClass}
"""By the word a user writes for ``--model.kind``."""


def fit_target(kind: str, names: list[str], values: np.ndarray, classes: list[str] | None = None) -> Target:
    """The target for training labels.

    Args:
        kind: A key of `KINDS`, or ``auto``: binary for labels 0 and 1, several classes for names, regression else.
        names: Of the label columns.
        values: (n, tasks), NaN where missing.
        classes: Names of classes where the column holds words.
    """
    if not len(names):
        raise DataError("no label column is given", remedy="Name one: --data.targets [COLUMN]")
    if kind != "auto" and kind not in KINDS:
        raise RecipeError(f"there is no kind {kind!r}", where="model.kind", remedy=f"Known: auto, {', '.join(KINDS)}")
    if np.isnan(values).all():
        raise DataError(f"column {names[0]!r} has no label among the training rows")
    if kind == "auto":
        given = values[~np.isnan(values)]
        kind = "multiclass" if classes else "binary" if np.isin(given, (0, 1)).all() else "regression"
    if kind == "multiclass":
        return MultiClass.fit(names, values, classes)
    return KINDS[kind].fit(names, values)


def target_from_state(state: dict[str, Any]) -> Target:
    """The target that a checkpoint holds.

    Args:
        state: As made by `Target.state`.
    """
    state = dict(state)
    kinds = {kind.__name__: kind for kind in KINDS.values()}
    return kinds[state.pop("kind")](**state)


def ranks(values: np.ndarray) -> np.ndarray:
    """(n,) rank of each value from 1; ties share their mean rank.

    Args:
        values: (n,).
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


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
