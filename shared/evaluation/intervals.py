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


def paired(
    metric: Callable[[np.ndarray, np.ndarray], float | None],
    ours: np.ndarray,
    theirs: np.ndarray,
    values: np.ndarray,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float] | None:
    """How much the metric of one method is above another's, with its 95 % interval over resampled items.

    Both are measured on the same items in each resample, so that what makes an item hard for both cancels out. Runs of
    several seeds count as one method: their metrics are averaged.

    Args:
        metric: From predictions and labels to a number, or None where it is undefined.
        ours: (seeds, n, outputs).
        theirs: (seeds, n, outputs); of as many seeds as there are.
        values: (n, tasks).
        resamples: Drawn.
        seed: Of the draws.

    Returns:
        The difference on all items, low and high end; None as in `bootstrap`.
    """
    weights = np.repeat([1.0 / len(ours), -1.0 / len(theirs)], [len(ours), len(theirs)])
    stack = np.moveaxis(np.concatenate([ours, theirs]), 0, 1)  # resampled by item: (n, seeds of both, outputs)

    def difference(predictions: np.ndarray, labels: np.ndarray) -> float | None:
        found = [metric(one, labels) for one in np.moveaxis(predictions, 1, 0)]
        return None if None in found else float(weights @ np.array(found, dtype=float))

    whole = difference(stack, values)
    interval = bootstrap(difference, stack, values, resamples=resamples, seed=seed)
    return None if whole is None or interval is None else (whole, *interval)
