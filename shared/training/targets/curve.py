"""`Curve`: what a threshold does to the predictions of a yes/no label."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np


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
