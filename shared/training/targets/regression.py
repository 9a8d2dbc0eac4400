"""`Regression`: numbers, each column in its own unit."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np
from torch import Tensor

from polyfm.shared.errors import DataError
from polyfm.shared.objectives.gather import global_mean
from polyfm.shared.training.targets.target import Target, average_columns, given_columns


@dataclasses.dataclass
class Regression(Target):
    """Standardised mean squared error; metrics in the label's own unit, beside them ``nrmse`` for several columns."""

    mean: list[float] = dataclasses.field(default_factory=list)
    """Of the training labels, own unit."""
    scale: list[float] = dataclasses.field(default_factory=list)
    """Standard deviation of the training labels, own unit."""

    higher_is_better = False

    @property
    def primary(self) -> str:
        """See `Target.primary`: RMSE in the own unit of one column; of several, whose units may differ, ``nrmse``."""
        return "rmse" if len(self.names) == 1 else "nrmse"

    @classmethod
    def fit(cls, names: list[str], values: np.ndarray) -> Self:
        """See `Target.fit`."""
        for name, column in zip(names, values.T, strict=True):
            if np.isnan(column).all():
                raise DataError(
                    f"column {name!r} has no label among the training rows",
                    remedy="Choose another column, or split otherwise (--data.split)",
                )
        scale = np.nanstd(values, axis=0)
        if not scale.any():
            raise DataError(
                f"column {names[0]!r} has the same value {np.nanmax(values[:, 0]):g} in all training rows",
                remedy="Choose another column: there is nothing to learn",
            )
        return cls(
            names=names,
            mean=np.nanmean(values, axis=0).tolist(),
            scale=np.where(scale > 0, scale, 1.0).tolist(),
        )

    def loss(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See `Target.loss`."""
        mean, scale = outputs.new_tensor(self.mean), outputs.new_tensor(self.scale)
        given = ~values.isnan()
        error = (outputs - (values - mean) / scale)[given]
        return global_mean(error.square())

    def decode(self, outputs: Tensor) -> Tensor:
        """See `Target.decode`: own unit."""
        return outputs * outputs.new_tensor(self.scale) + outputs.new_tensor(self.mean)

    def metrics(self, predictions: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """RMSE, MAE, R², Spearman; with several columns each column's own, and under the bare name the mean.

        Means are of what has no unit: R², Spearman, and ``nrmse``, the RMSE divided by the standard deviation of the
        column's training labels.
        """
        per_column: dict[str, dict[str, float]] = {}
        for name, scale, (p, y) in zip(self.names, self.scale, given_columns(predictions, values), strict=True):
            found: dict[str, float] = {}
            if len(y):
                found["rmse"] = float(np.sqrt(np.mean((p - y) ** 2)))
                found["mae"] = float(np.mean(np.abs(p - y)))
                if len(self.names) > 1:
                    found["nrmse"] = found["rmse"] / scale
            if len(y) > 1 and np.ptp(y) > 0:
                found["r2"] = float(1 - np.sum((p - y) ** 2) / np.sum((y - y.mean()) ** 2))
                if np.ptp(p) > 0:
                    found["spearman"] = float(np.corrcoef(ranks(p), ranks(y))[0, 1])
            per_column[name] = found
        means = average_columns(per_column)
        return {name: means[name] for name in means if len(self.names) == 1 or name not in ("rmse", "mae")}


def ranks(values: np.ndarray) -> np.ndarray:
    """(n,) rank of each value from 1; ties share their mean rank.

    Args:
        values: (n,).
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
