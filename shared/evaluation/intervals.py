"""Uncertainty of metrics: bootstrap over items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

FEWEST = 2
"""Items that an interval needs: of one, all resamples are alike."""


def bootstrap(
    metric: Callable[[np.ndarray, np.ndarray], float | None],
    predictions: np.ndarray,
    values: np.ndarray,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[float, float] | None:
    """95 % interval of a metric over resampled items; resamples where it is undefined are left out.

    Args:
        metric: From predictions and labels to a number, or None where it is undefined.
        predictions: (n, outputs).
        values: (n, tasks).
        resamples: Drawn.
        seed: Of the draws.

    Returns:
        Low and high end; None if there are fewer than `FEWEST` items or the metric is undefined in every resample.
    """
    if len(values) < FEWEST:
        return None
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        rows = rng.integers(0, len(values), len(values))
        value = metric(predictions[rows], values[rows])
        if value is not None:
            found.append(value)
    if not found:
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
