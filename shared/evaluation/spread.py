"""How far an ensemble's members are apart, and what that says about their mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyfm.shared.evaluation.report.page import Panel
from polyfm.shared.evaluation.report.panels import spread_panel
from polyfm.shared.training.targets.multi_class import MultiClass
from polyfm.shared.training.targets.regression import ranks
from polyfm.shared.training.targets.target import Target


def judge_spread(
    target: Target, stack: np.ndarray, values: np.ndarray, together: dict[str, Any]
) -> tuple[dict[str, float], Panel]:
    """How good each member is, how far they are apart, and whether that tells where the mean is wrong; its panel.

    Args:
        target: What is predicted.
        stack: (members, n, outputs), decoded.
        values: (n, tasks), NaN where missing.
        together: Metrics of the mean prediction.
    """
    scores = {
        f"member_{i}/{target.primary}": score
        for i, single in enumerate(stack)
        if (score := target.metrics(single, values).get(target.primary)) is not None
    }
    spread, error = spread_and_error(target, stack, values)
    metrics = {**scores, "mean_sd": float(stack.std(axis=0, ddof=1).mean())}
    if len(error) > 1 and np.ptp(spread) > 0 and np.ptp(error) > 0:
        metrics["sd_error_spearman"] = float(np.corrcoef(ranks(spread), ranks(error))[0, 1])
    mean = together.get(f"test/{target.primary}")
    shown = {name.split("/")[0]: score for name, score in scores.items()}
    return metrics, spread_panel(
        target.primary,
        shown if mean is None else {**shown, "their mean": mean},
        spread,
        error,
        metrics.get("sd_error_spearman"),
    )


def spread_and_error(target: Target, stack: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m,) standard deviation over members and (m,) absolute error of their mean, where the first label is given.

    Args:
        target: What is predicted; of several classes both are of the true one's probability.
        stack: (members, n, outputs), decoded.
        values: (n, tasks), NaN where missing.
    """
    label = values[:, 0]
    if isinstance(target, MultiClass):
        rows = np.flatnonzero(label < target.outputs)
        said, truth = stack[:, rows, label[rows].astype(int)], np.ones(len(rows))
    else:
        rows = np.flatnonzero(~np.isnan(label))
        said, truth = stack[:, rows, 0], label[rows]
    return said.std(axis=0, ddof=1), np.abs(said.mean(axis=0) - truth)
